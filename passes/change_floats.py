"""Store, or compute, in float16 or bfloat16; inputs and outputs stay float32.

    what="weights":   linear(x, weight)  =>  linear(x, float32(weight_float16))
    what="all":       linear(x, weight)  =>  float32(linear(float16(x), weight_float16))

Weights alone cost no time: the runtime turns them back once, when it loads the file, which is half as large.
Computing in half pays only where there are kernels for it. ONNX Runtime's CPU provider has next to none: it
puts a cast on both sides of every operator (ort#16778).

float16 ends at 65504. What lies beyond becomes infinite: such a weight is refused, and `overflow` finds the
operator that makes such a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxcompress.errors import InputError, NotSupported
from fxcompress.graph import edit, walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.precision import retype
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import is_quantized
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.plan.eligibility import excluded

aten = torch.ops.aten

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PARTS = ("weights", "all")


@dataclass(frozen=True)
class ChangeFloats:
    """Change float32 to a half precision.

    Args:
        dtype: `"float16"` or `"bfloat16"`.
        what: `"weights"`, which are stored in it, or `"all"`: what is computed, too.
        smallest: elements that a tensor must have to be stored in it, where only weights are.
        exclude: shell patterns of parameter names, and of the node names and module paths of their readers,
            that stay in float, where only weights are stored.

    Raises:
        InputError: another type or part, or something to exclude where everything is computed in the type.
    """

    name: ClassVar[str] = "change-floats"
    dtype: str = "float16"
    what: str = "weights"
    smallest: int = 1024
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in TYPES:
            raise InputError(f"dtype is one of {', '.join(TYPES)}, not {self.dtype!r}")
        if self.what not in PARTS:
            raise InputError(f"what is one of {', '.join(PARTS)}, not {self.what!r}")
        if self.exclude and self.what == "all":
            raise InputError('what="all" excludes nothing: the whole program is computed in the type')

    def run(self, program: Program) -> Outcome:
        """Return the program with shorter floats.

        Raises:
            NotSupported: a stored number is beyond the type's range, or values are quantized.
        """
        if self.what == "all" and is_quantized(program):
            raise NotSupported(
                "a program with quantized values is not computed in a half precision: its scales are float32",
                hint='what="weights" stores what is left in float',
            )
        copy = program.copy()
        stored = [
            node
            for node in walk.tensor_nodes(copy)
            if walk.dtype(node) == torch.float32
            and (self.what == "all" or walk.value(node).numel() >= self.smallest)
            and not any(excluded(self.exclude, reader, node) for reader in node.users)
        ]
        declined = tuple(_declined(node) for node in stored if not _fits(copy, node, TYPES[self.dtype]))
        if declined and self.what == "all":
            raise NotSupported(
                f"{declined[0].site} holds numbers beyond {self.dtype}",
                hint='bfloat16 has the range of float32; what="weights" leaves such a tensor as it is',
            )
        names = {item.site for item in declined}
        stored = [node for node in stored if node.target not in names]
        if not stored:
            return Outcome(program, (), declined)
        for node in stored:
            _shorten(copy, node, TYPES[self.dtype])
        if self.what == "all":
            _compute(copy, TYPES[self.dtype])
        else:
            for node in stored:
                _restore(node)
        edit.tidy(copy)
        edit.reinfer(copy)
        return Outcome(copy, tuple(f"{node.target} stored as {self.dtype}" for node in stored), declined)


def _fits(program: Program, node: fx.Node, dtype: torch.dtype) -> bool:
    """Whether no finite number of a stored tensor becomes infinite."""
    values = walk.tensor(program, node).detach()
    return bool((values.to(dtype).isfinite() | ~values.isfinite()).all())


def _declined(node: fx.Node) -> Decline:
    return Decline(str(node.target), "it holds numbers beyond the type's range", walk.source(node))


def _shorten(program: Program, node: fx.Node, dtype: torch.dtype) -> None:
    name = str(node.target)
    edit.set_tensor(program, name, walk.tensor(program, name).detach().to(dtype))
    fake = walk.value(node)
    node.meta["val"] = fake.to(dtype)


def _restore(node: fx.Node) -> None:
    """Let the readers of a stored tensor read it in float32."""
    real = edit.call_before(min(node.users), aten.to.dtype, (node, torch.float32), name=f"{node.name}_float")
    edit.replace_uses(node, real)


def _compute(program: Program, dtype: torch.dtype) -> None:
    """Let everything between inputs and outputs be computed in a type; numbers beyond it are its ends."""
    retype(program.graph, dtype)
    largest = torch.finfo(dtype).max
    for node in program.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = _within(node.args, largest), _within(node.kwargs, largest)
    for node in walk.placeholders(program):
        if walk.dtype(node) == torch.float32:
            short = edit.call_after(node, aten.to.dtype, (node, dtype), name=f"{node.name}_short")
            edit.replace_uses(node, short)
    end = walk.output_node(program)
    for value in dict.fromkeys(walk.output_values(program)):
        if walk.dtype(value) == torch.float32:
            real = edit.call_before(end, aten.to.dtype, (value, torch.float32), name=f"{value.name}_float")
            edit.replace_uses(value, real, only=[end])


def _within(value: Any, largest: float) -> Any:
    """An argument with finite numbers beyond a bound (the low end of float32 in masks) moved to it."""
    if isinstance(value, tuple | list):
        return type(value)(_within(item, largest) for item in value)
    if isinstance(value, dict):
        return {key: _within(item, largest) for key, item in value.items()}
    if isinstance(value, float) and math.isfinite(value):
        return min(max(value, -largest), largest)
    return value


def overflow(before: Program, after: Program, batches: Iterable[Sequence[Tensor]]) -> fx.Node | None:
    """The operator of `after` that spoils its outputs with an infinity or NaN; None where they are finite.

    An infinity that goes no further (the minus infinity of a masked score) is none.

    Args:
        before: the program in float32.
        after: what `ChangeFloats(what="all")` made of it.
        batches: flat inputs.
    """
    for inputs in batches:
        known, found = _Finite(before), _Finite(after)
        with torch.no_grad():
            known.run_flat(list(inputs))
            found.run_flat(list(inputs))
        pairs = zip(walk.output_values(before), walk.output_values(after), strict=True)
        if all(right.name in found.finite for left, right in pairs if left.name in known.finite):
            continue
        lost = (node for node in after.graph.nodes if node.name in known.finite - found.finite)
        return next(lost, walk.output_values(after)[0])
    return None


class _Finite(Executor):
    """Remembers the nodes whose values are all finite."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.finite: set[str] = set()

    def after(self, node: fx.Node, value: Any) -> Any:
        """Look at one value."""
        if isinstance(value, Tensor) and bool(value.isfinite().all()):
            self.finite.add(node.name)
        return value

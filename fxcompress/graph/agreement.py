"""Whether a captured program computes what its model does, also for sizes it was not captured with.

A trace can specialise silently: `if x.shape[0] > 1` is true for every batch that tracing has in mind. So the
model and the program are run and compared, with a batch of one and of three and with other dynamic dimensions
halved.

Both run the same kernels on the same values, apart from a few operators that the canonical form writes
otherwise, so a difference is rounding: 64 steps of the narrowest type on the way, relative to the largest
value (8e-6 in float32). A network that amplifies rounding more is held to eight times what rounding does to
the program itself, measured against float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, InputError
from fxcompress.graph import walk
from fxcompress.graph.dynamic import Dynamic, resize
from fxcompress.graph.execute import run_flat
from fxcompress.graph.modes import has_mode, in_training
from fxcompress.graph.program import Program
from fxcompress.graph.signature import Example
from fxcompress.graph.tracing import describe, first_line

STEPS = 64.0
"""Roundings of the narrowest type, relative to the largest value, that need no explanation."""
ROOM = 8.0
"""Times the program's own rounding that a difference may be; it is another draw of the same error."""


def check(run: Callable[[Example], Any], program: Program, example: Example, dynamic: Dynamic) -> None:
    """Raise CaptureError where the program differs from what `run` returns for the example at any tried size.

    Sizes that the model itself refuses are left out, and so is a program that draws random numbers; where
    nothing is left but the example itself, or not even that, the program gets a note.
    """
    if is_random(program):
        program.notes.append("the graph was not compared with the model, which draws random numbers")
        return
    compared = [_agree(run, program, variant) for variant in _variants(example, dynamic)]
    if any(compared):
        return
    if dynamic.symbols and _agree(run, program, example):
        program.notes.append(
            "the graph was compared with the model at the example's sizes only: it takes no other"
        )
        return
    program.notes.append("the graph was not compared with the model, which refuses the sizes that were tried")


def _agree(run: Callable[[Example], Any], program: Program, variant: Example) -> bool:
    """Whether the model takes these inputs; raises CaptureError where the program differs from it."""
    try:
        expected = _tensors(run(variant))
    except InputError:
        return False
    inputs = _tensors((variant.args, variant.kwargs))
    try:
        found = run_flat(program, inputs)
    except Exception as error:
        raise _differs(variant, f"it fails: {first_line(error)}") from error
    for place, (name, one, other) in enumerate(zip(program.signature.outputs, expected, found, strict=True)):
        difference = _difference(variant, name, one, other)
        if difference == 0.0:
            continue
        if difference == 0.0 or difference <= STEPS * _step(program) * _peak(one):
            continue
        if not difference <= ROOM * _rounding(program, inputs, place, other):
            raise _differs(variant, f"{name} differs by {difference:.3g}")
    return True


def is_random(program: Program) -> bool:
    """Whether two runs of the program may differ."""
    return any(True for _ in random_nodes(program))


def random_nodes(program: Program) -> Iterator[fx.Node]:
    """The nodes that draw random numbers, in order."""
    return (node for node in program.graph.nodes if node.op == "call_function" and _draws(node))


def _draws(node: Any) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    if has_mode(node):
        return in_training(node)
    # Recurrent layers carry their own dropout, which draws in training only.
    if walk.argument(node, "train", True) is False:
        return False
    return all(walk.argument(node, name, 1.0) != 0.0 for name in ("dropout_p", "dropout"))


def _variants(example: Example, dynamic: Dynamic) -> Iterator[Example]:
    if not dynamic.symbols:
        yield example
        return
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    for batch, halve in ((1, False), (3, True)):
        resized = [
            _resize(leaf, dims, batch, halve) for leaf, dims in zip(leaves, dynamic.names, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(resized, spec)
        yield Example(args, kwargs)


def _resize(leaf: Any, dims: dict[int, str], batch: int, halve: bool) -> Any:
    for dim in dims:
        if dim == 0:
            leaf = resize(leaf, batch)
        elif halve:
            leaf = leaf.narrow(dim, 0, (leaf.shape[dim] + 1) // 2)
    return leaf


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _difference(variant: Example, name: str, one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two outputs; integers, NaN and infinities must be equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        raise _differs(
            variant,
            f"{name} is {one.dtype}{list(one.shape)}, the graph makes {other.dtype}{list(other.shape)}",
        )
    if torch.equal(one, other):
        return 0.0
    if not one.is_floating_point() and not one.is_complex():
        raise _differs(variant, f"{name}, of {one.dtype}, differs in {(one != other).sum()} places")
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()) or not torch.allclose(
        one[~finite], other[~finite], equal_nan=True
    ):
        raise _differs(variant, f"{name} is NaN or infinite in other places")
    return _gap(one, other)


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference where both are finite."""
    finite = one.isfinite() & other.isfinite()
    return _peak(one[finite].to(torch.complex128) - other[finite].to(torch.complex128))


def _peak(tensor: torch.Tensor) -> float:
    """The largest finite absolute value."""
    values = tensor.detach()[tensor.isfinite()].abs()
    return float(values.max()) if values.numel() else 0.0


def _rounding(program: Program, inputs: list[torch.Tensor], place: int, found: torch.Tensor) -> float:
    """What rounding does to one output of the program: its distance from the same in float64."""
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    return _gap(run_flat(program.to(torch.float64), wide)[place], found)


def _step(program: Program) -> float:
    """The relative rounding of the narrowest floating type of the program."""
    types = {walk.dtype(node) for node in program.graph.nodes if walk.is_tensor(node)}
    return max((torch.finfo(dtype).eps for dtype in types if dtype.is_floating_point), default=0.0)


def _differs(variant: Example, how: str) -> CaptureError:
    return CaptureError(
        f"the captured graph does not compute what the model does for inputs {describe(variant)}: {how}",
        hint="the model's Python code does something else for these sizes; make it the same for all",
    )

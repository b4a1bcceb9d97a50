"""Parts of a model that are switched off as it stands: no output tells a right one from a wrong one.

A branch behind a LayerScale or a batch norm of zeros may be pruned wrongly, and every output stays right
until training turns it on. So parameters that hold zeros get other numbers, the same ones in the original,
its rewritten form and the pruned program, and all is compared once more. That costs a second comparison, and
only models with such zeros pay it. Zeros are

- parameters that are zero as a whole, of any rank (a LayerScale, the last layer of a branch);
- zero entries of vectors (gamma of one channel). Single zeros of matrices are left: none switches off more
  than itself, and masks have millions of them.

Zeros that are read only as the *bias* of a contraction or normalisation ask for no second comparison: what
they are added to gets through, unless the weight is zero, and then the weight asks for one. Where there is
one, they get numbers too.

What stays off even then, because no input that was tried reaches it (a ReLU that never fires), is told by
gradients: one backward pass names the tensors that were cut and that no output answers to. What is known
there is the shapes alone. A tensor counts as heard where any entry is; single dead channels are not told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.errors import InputError, ProofError
from fxcompress.graph import edit, walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.origins import Origin
from fxcompress.graph.program import Program
from fxcompress.ops.arguments import arguments
from fxcompress.plan.pruning_plan import PruningPlan

FAINT = 0.1
"""Size of what replaces zeros that have no neighbours, relative to what keeps activations at their scale: far
above the tolerance, and deep networks do not become chaotic by it."""

_ADDENDS = {"bias"}
_ADDMM = (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default)


def changes(original: Program, seed: int) -> dict[str, Tensor]:
    """By name, what to add to the parameters that hold zeros; empty where none switches anything off.

    Args:
        original: the program; it is left as it is.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    needed = False
    for node in walk.parameter_nodes(original):
        tensor = walk.tensor(original, node).detach()
        zero = tensor == 0
        if not tensor.is_floating_point() or not bool(zero.any()) or (tensor.dim() > 1 and not zero.all()):
            continue
        found[str(node.target)] = torch.where(zero, _noise(tensor, generator), 0.0)
        needed = needed or not _only_bias(node)
    return found if needed else {}


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers away from zero, of the size of the entries beside them."""
    sizes = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
    others = tensor[tensor != 0].double()
    fan_in = tensor.numel() / tensor.shape[0] if tensor.dim() > 1 else 1.0
    scale = float(others.square().mean().sqrt()) if others.numel() else FAINT / fan_in**0.5
    return (sizes * signs * scale).to(tensor.dtype)


def _only_bias(node: Node) -> bool:
    """Whether every reader adds the tensor to a contraction or to what it normalised."""
    for reader in node.users:
        if not isinstance(reader.target, torch._ops.OpOverload):
            return False
        names = _ADDENDS | ({"self"} if reader.target in _ADDMM else set())
        read = {name for name, value in arguments(reader).items() if _mentions(value, node)}
        if not read <= names:
            return False
    return True


def _mentions(value: Any, node: Node) -> bool:
    return value is node or (isinstance(value, list | tuple) and any(_mentions(item, node) for item in value))


@dataclass(frozen=True)
class Waking:
    """What is added to the tensors of zeros, by their names in each of the three programs.

    Args:
        original, reference, pruned: by name, what is added.
        asleep: tensors of zeros that stay: one of the programs has no counterpart (it was folded).
    """

    original: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]
    pruned: Mapping[str, Tensor]
    asleep: int = 0

    @classmethod
    def of(
        cls, original: Program, reference: Program, pruned: Program, plan: PruningPlan, seed: int
    ) -> Waking:
        """The same changes for a program, its rewritten form and the pruned program."""
        deltas = changes(original, seed)
        parts = _parts(deltas, original, reference)
        present = {str(node.target) for node in walk.tensor_nodes(pruned)}
        usable = {
            name: delta
            for name, delta in deltas.items()
            if parts[name] and (name in present or parts[name].keys() <= present)
        }
        rewritten = {part: delta for name in usable for part, delta in parts[name].items()}
        left = {name: _kept(delta, plan.kept.get(name, {})) for name, delta in usable.items()}
        for name, delta in rewritten.items():
            left[name] = _kept(delta, reference.origins.own(name, plan.kept, plan.copies))
        here = {name: delta for name, delta in left.items() if name in present}
        return cls(usable, rewritten, here, len(deltas) - len(usable))


def _parts(
    deltas: Mapping[str, Tensor], original: Program, reference: Program
) -> dict[str, dict[str, Tensor]]:
    """By name, what a tensor became in the rewritten program (itself, parts, copies), with the changes."""
    stored = {alias: name for name in deltas for alias in walk.aliases(original, name)}
    found: dict[str, dict[str, Tensor]] = {name: {} for name in deltas}
    for node in walk.tensor_nodes(reference):
        name = str(node.target)
        origin = None if name in original.origins.tensors else reference.origins.tensors.get(name)
        source = stored.get(origin.tensor if origin else name)
        if source is not None:
            found[source][name] = _of(deltas[source], origin)
    return found


def _of(delta: Tensor, origin: Origin | None) -> Tensor:
    if origin is None or origin.dim is None:
        return delta
    return delta.index_select(origin.dim, torch.tensor(origin.positions))


def _kept(delta: Tensor, dims: Mapping[int, Sequence[int]]) -> Tensor:
    for dim, stay in dims.items():
        delta = delta.index_select(dim, torch.tensor(stay))
    return delta


def add(program: Program, deltas: Mapping[str, Tensor]) -> None:
    """Add to tensors, in a program that nobody else holds.

    Raises:
        ProofError: a tensor has another shape than its change.
    """
    for name, delta in deltas.items():
        tensor = walk.tensor(program, name).detach()
        if tensor.shape != delta.shape:
            raise ProofError(
                f"{name} has shape {tuple(tensor.shape)}, and the plan says {tuple(delta.shape)}"
            )
        edit.set_tensor(program, name, tensor + delta.to(tensor.dtype))


def unheard(program: Program, names: Collection[str], batches: Sequence[Sequence[Tensor]]) -> tuple[str, ...]:
    """The tensors that no floating output answers to, on any of the inputs; empty where nothing can be told.

    Args:
        program: what is asked; it is left as it is.
        names: the tensors to ask about.
        batches: flat inputs; later ones are run only for what earlier ones leave unheard.
    """
    left = [str(node.target) for node in walk.tensor_nodes(program) if str(node.target) in names]
    for inputs in batches:
        listener = _Listener(program, left)
        try:
            heard = listener.heard(inputs)
        except (RuntimeError, NotImplementedError, InputError):  # an operator without a derivative
            return ()
        if heard is None:
            return ()
        left = [name for name in left if name not in heard]
        if not left:
            break
    return tuple(left)


class _Listener(Executor):
    """Runs a program with some of its tensors as variables."""

    def __init__(self, program: Program, names: Collection[str]) -> None:
        super().__init__(program)
        self.names = names
        self.variables: dict[str, Tensor] = {}

    def after(self, node: Node, value: Any) -> Any:
        """Make the tensors that are asked about variables."""
        if node.op != "get_attr" or not isinstance(value, Tensor):
            return value
        value = value.detach()
        if str(node.target) in self.names and value.is_floating_point():
            self.variables[str(node.target)] = value.requires_grad_()
        return value

    def heard(self, inputs: Sequence[Tensor]) -> set[str] | None:
        """The tensors to which a random sum of the outputs answers; None where no output is a float."""
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            outputs = [item for item in self.run_flat(inputs) if item.is_floating_point()]
            if not outputs:
                return None
            weights = [torch.randn(item.shape, generator=generator, dtype=item.dtype) for item in outputs]
            total = sum(
                (torch.where(item.isfinite(), item, 0.0) * weight).sum()
                for item, weight in zip(outputs, weights, strict=True)
            )
            whole = {name for name in self.names if name not in self.variables}
            if not isinstance(total, Tensor) or not total.requires_grad:
                return whole
            # Within the block: `grad` looks its inputs up by views, which carry nothing where grads are off.
            found = torch.autograd.grad(total, list(self.variables.values()), allow_unused=True)
        pairs = zip(self.variables, found, strict=True)
        return whole | {name for name, slope in pairs if slope is not None and bool((slope != 0).any())}

"""Masked equivalence: what removal must compute, shown on the original graph.

Removing a channel must equal switching it off where it is *consumed*: the original program is run in float64
with the consumers' slices of every removed position set to zero (an operand of the contraction), and with
every normalisation and reduction over a removed axis computed on the kept positions. The pruned program must
then give the same outputs to 1e-9 relative.

Deep networks hardly depend on their input, and a comparison of outputs would then accept almost anything. So
what is compared is the *difference* between the outputs for two inputs, beside the outputs themselves. Other
inputs are tried until the outputs move.
Entries that are one constant everywhere (a logit masked with -1e38) do not count: measured against them,
every fault would be small.

What removal *means* is taken from the operators, not from the model's intent: `x.sum(1) / 64` over 64
channels keeps its 64 when channels go, exactly as if they were zero; `x.mean(1)` is the mean of those that
stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from fxcompress.analysis.groups import analyse
from fxcompress.axes.positions import Indices, kept
from fxcompress.errors import ProofError
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.program import Program
from fxcompress.ops.arguments import arguments
from fxcompress.ops.consumption import Operand, consumed
from fxcompress.ops.resize import Resizing, resize
from fxcompress.plan.pruning_plan import PruningPlan

TOLERANCE = 1e-9
"""Largest relative difference: float64 keeps about 1e-16, and depth amplifies it by far less than 1e7."""

_ROWS = 2
"""Dimensions of a tensor that has rows whose entries can change places."""


@dataclass(frozen=True)
class MaskedEquivalence:
    """What was compared.

    Args:
        output_error: largest difference of an output, relative to the largest output.
        difference_error: largest difference in how outputs answer a change of input, relative to that answer.
        response: how much the outputs moved between the two inputs, relative to their size (for integers, the
            share of them that changed). It is zero when none of the other inputs that were tried moved them:
            the model ignores its input, and the comparison of differences says nothing.
    """

    output_error: float
    difference_error: float
    response: float


def masked_equivalence(
    before: Program, after: Program, plan: PruningPlan, *, seed: int = 0
) -> MaskedEquivalence:
    """Prove that `after` is `before` without the channels that `plan` removes.

    Args:
        before: the program the plan was made for.
        after: the pruned program.
        plan: what was removed.
        seed: of the other inputs.

    Raises:
        ProofError: an output differs by more than 1e-9 relative, is NaN, or has another shape.
    """
    reference, pruned = before.to(torch.float64).eval(), after.to(torch.float64).eval()
    masked = MaskedExecutor(reference, plan)
    inputs = reference.flat_example()
    with torch.no_grad():
        wanted = masked.run_flat(inputs)
        others, other_wanted = _moving(masked, inputs, wanted, seed)
        answers = [(wanted, run_flat(pruned, inputs)), (other_wanted, run_flat(pruned, others))]
    outputs = [_Output(*pair, *found) for pair, found in _by_output(answers)]
    return _compare(outputs, before.signature.outputs)


def _moving(
    masked: MaskedExecutor, inputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], seed: int
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """The first other inputs that move the outputs, and those outputs; the inputs themselves if none do.

    Inputs that the original refuses (an index past its table) or answers with NaN are left out.
    """
    for others in variations(inputs, seed):
        try:
            answer = masked.run_flat(others)
        except (IndexError, RuntimeError):
            continue
        moved = any(not torch.equal(one, other) for one, other in zip(wanted, answer, strict=True))
        if moved and not any(bool(value.isnan().any()) for value in answer):
            return others, answer
    return inputs, wanted


def variations(inputs: Sequence[torch.Tensor], seed: int) -> Iterator[list[torch.Tensor]]:
    """Other inputs of the same kind, the most faithful first; only such as really differ.

    Floats get noise of their own scale. Of the others whole rows change places, so that token ids stay with
    their masks and every column keeps its range. Where this changes nothing (one row, or one repeated), the
    entries of each row are shuffled, then drawn anew among the values seen, and at last flags (only zeros and
    ones, which may be a mask) are drawn too.
    """
    generator = torch.Generator().manual_seed(seed)
    for change in (_rolled, _shuffled, _redrawn, _flipped):
        varied = [
            _noisy(tensor, generator) if tensor.is_floating_point() else change(tensor, generator)
            for tensor in inputs
        ]
        if any(not torch.equal(one, other) for one, other in zip(inputs, varied, strict=True)):
            yield varied


def _noisy(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    finite = tensor.double()[tensor.isfinite()]
    scale = finite.std() if finite.numel() > 1 else torch.tensor(1.0)
    return (tensor.double() + noise * (scale + 1e-3)).to(tensor.dtype)


def _rolled(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001 - as its siblings
    return tensor.roll(1, 0) if tensor.dim() else tensor


def _shuffled(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.dim() < _ROWS or _is_flags(tensor):
        return tensor
    return tensor.gather(-1, torch.rand(tensor.shape, generator=generator).argsort(-1))


def _redrawn(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not tensor.dim() or _is_flags(tensor):
        return tensor
    seen = sorted(set(tensor.flatten().tolist()))
    values = torch.tensor(seen if len(seen) > 1 else [0, *seen], dtype=tensor.dtype)
    return values.take(torch.randint(len(values), tensor.shape, generator=generator))


def _flipped(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not tensor.dim() or not _is_flags(tensor):
        return _redrawn(tensor, generator)
    return torch.randint(2, tensor.shape, generator=generator).to(tensor.dtype)


def _is_flags(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


Answers: TypeAlias = Sequence[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]
"""For each input: the outputs that are wanted and those that were found."""


def _by_output(
    answers: Answers,
) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """Per output: what is wanted for the two inputs, and what was found."""
    (wanted, found), (other_wanted, other_found) = answers
    yield from zip(zip(wanted, other_wanted, strict=True), zip(found, other_found, strict=True), strict=True)


@dataclass(frozen=True)
class _Output:
    """One output for two inputs, as it must be and as it is."""

    wanted: torch.Tensor
    other_wanted: torch.Tensor
    found: torch.Tensor
    other_found: torch.Tensor

    def check_kind(self, name: str) -> None:
        """Raise ProofError where numbers cannot be compared: another shape, NaN, integers that differ."""
        if self.wanted.shape != self.found.shape:
            raise ProofError(
                f"{name} has shape {tuple(self.found.shape)} after pruning, and had "
                f"{tuple(self.wanted.shape)}"
            )
        if bool(self.wanted.isnan().any() | self.other_wanted.isnan().any()):
            raise ProofError(
                f"{name} of the masked original is NaN for the example inputs",
                hint="pass example inputs for which the model gives numbers",
            )
        if not self.inexact and not (
            torch.equal(self.wanted, self.found) and torch.equal(self.other_wanted, self.other_found)
        ):
            raise ProofError(f"{name}, of {self.wanted.dtype}, differs from the masked original", hint=_FAULT)

    @property
    def inexact(self) -> bool:
        return self.wanted.is_floating_point() or self.wanted.is_complex()

    def moving(self) -> _Output:
        """The entries that are not one constant, right in both answers."""
        same = (self.found == self.wanted) & (self.other_found == self.other_wanted)
        live = ~(same & (self.wanted == self.other_wanted))
        return _Output(self.wanted[live], self.other_wanted[live], self.found[live], self.other_found[live])


_FAULT = "this is a fault in fxcompress: please report it with the model's graph (`fxcompress inspect`)"


def _compare(outputs: Sequence[_Output], names: Sequence[str]) -> MaskedEquivalence:
    output_error = difference_error = response = 0.0
    for name, output in zip(names, outputs, strict=True):
        output.check_kind(name)
        if not output.inexact:
            changed = (output.wanted != output.other_wanted).double()
            response = max(response, float(changed.mean()) if changed.numel() else 0.0)
            continue
        live = output.moving()
        size = _peak(live.wanted)
        moved = _peak(live.other_wanted - live.wanted)
        error = _peak(live.found - live.wanted)
        drift = _peak((live.other_found - live.found) - (live.other_wanted - live.wanted))
        # Cancellation makes the difference of two outputs uncertain by their rounding, a few units of 1e-16
        # each.
        rounding = 1e-13 * size
        if not error <= TOLERANCE * size or not drift <= TOLERANCE * moved + rounding:
            raise ProofError(
                f"{name} differs from the masked original: {error / max(size, 1e-300):.2e} of its size, "
                f"{drift / max(moved, 1e-300):.2e} of its response to a change of input (allowed "
                f"{TOLERANCE:.0e})",
                hint=_FAULT,
            )
        output_error = max(output_error, error / size if size else 0.0)
        difference_error = max(difference_error, drift / moved if moved else 0.0)
        response = max(response, moved / size if size else 0.0)
    return MaskedEquivalence(output_error, difference_error, response)


def _peak(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


class MaskedExecutor(Executor):
    """Runs the original graph with removed positions switched off where they are consumed."""

    def __init__(self, program: Program, plan: PruningPlan) -> None:
        super().__init__(program)
        analysis = analyse(program)
        self.space = analysis.space
        self.indices = plan.indices(analysis)
        self.stored = plan.kept
        self.resizing = Resizing(self.space, {axis: len(stay) for axis, stay in self.indices.items()})
        self.tagged = {name for axis in self.indices for name in axis.statistics}

    def run_node(self, n: Node) -> Any:
        if n.name in self.tagged:
            return self.after(n, self._on_kept_positions(n))
        operands = consumed(n)
        if not operands:
            return super().run_node(n)
        values = self._values(n)
        for operand in operands:
            self._switch_off(operand, values)
        return self.after(n, n.target(**values))  # type: ignore[operator]

    def _values(self, n: Node) -> dict[str, Any]:
        """The arguments of an operator by name, with the values of nodes."""
        return {name: map_arg(value, self.env.__getitem__) for name, value in arguments(n).items()}

    def _kept(self, source: Node, dim: int) -> Indices:
        """Positions that stay: as the plan says for stored tensors, as analysed for activations."""
        if source.op == "get_attr":
            rank = len(self.space.of(source))
            stay = self.stored.get(str(source.target), {}).get(dim % rank)
            if stay is not None:
                return torch.tensor(stay).numpy()
        return kept(self.space.of(source)[dim], self.indices)

    def _switch_off(self, operand: Operand, values: dict[str, Any]) -> None:
        """Zero the removed positions of a contracted operand, in `values`."""
        argument = values[operand.argument]
        value = argument if operand.place is None else argument[operand.place]
        stay = torch.from_numpy(self._kept(operand.node, operand.dim))
        if len(stay) == value.shape[operand.dim]:
            return
        zeros = torch.zeros_like(value)
        masked = zeros.index_copy(operand.dim, stay, value.index_select(operand.dim, stay))
        if operand.place is None:
            values[operand.argument] = masked
        else:
            values[operand.argument] = [*argument[: operand.place], masked, *argument[operand.place + 1 :]]

    def _on_kept_positions(self, n: Node) -> Any:
        """Compute a normalisation or reduction on the kept positions of everything it reads.

        Removed positions of the result (of other axes) hold what the whole operator computes there: they are
        finite numbers, and switched off where they are consumed.
        """
        assert isinstance(n.target, torch._ops.OpOverload)
        bound = arguments(n)
        change = resize(self.resizing, n)
        bound.update(change.arguments if change is not None else {})
        thin = n.target(**{name: map_arg(value, self._thinned) for name, value in bound.items()})
        whole = n.target(**self._values(n))
        if isinstance(thin, tuple | list):
            several = self.space.values[n]
            return [self._laid_into(*item) for item in zip(whole, thin, several, strict=True)]
        return self._laid_into(whole, thin, self.space.of(n))

    def _thinned(self, source: Node) -> Any:
        value = self.env[source]
        if not isinstance(value, torch.Tensor):
            return value
        for dim in range(value.dim()):
            stay = torch.from_numpy(self._kept(source, dim))
            if len(stay) < value.shape[dim]:
                value = value.index_select(dim, stay)
        return value

    def _laid_into(self, whole: torch.Tensor, part: torch.Tensor, dims: Any, place: int = 0) -> torch.Tensor:
        """`whole` with `part` at the kept positions of `dims`, from dimension `place` on."""
        if place == len(dims):
            return part
        stay = torch.from_numpy(kept(dims[place], self.indices))
        if len(stay) == dims[place].size:
            return self._laid_into(whole, part, dims, place + 1)
        rows = self._laid_into(whole.index_select(place, stay), part, dims, place + 1)
        return whole.index_copy(place, stay, rows)

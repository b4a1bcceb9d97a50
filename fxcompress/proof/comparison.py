"""Comparing two programs exactly: on their outputs, and on how the outputs answer a change of input.

Deep networks hardly depend on their input, and a comparison of outputs would then accept almost anything. So
what is compared is the *difference* between the outputs for two inputs, beside the outputs themselves. Other
inputs are tried until the outputs move.
Entries that are one constant everywhere (a logit masked with -1e38) do not count: measured against them,
every fault would be small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from fxcompress.errors import InputError, ProofError
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.program import Program

TOLERANCE = 1e-9
"""Largest relative difference: float64 keeps about 1e-16, and depth amplifies it by far less than 1e7."""

_ROWS = 2
"""Dimensions of a tensor that has rows whose entries can change places."""


@dataclass(frozen=True)
class Equivalence:
    """What was compared.

    Args:
        output_error: largest difference of an output, relative to the largest output.
        difference_error: largest difference in how outputs answer a change of input, relative to that answer.
        response: how much the outputs moved between the two inputs, relative to their size (for integers, the
            share of them that changed). It is zero when none of the other inputs that were tried moved them:
            the model ignores its input, and the comparison of differences says nothing.
        woken: parameters of zeros that switch something off, and that had other numbers in a second
            comparison (`proof.dormant`).
        asleep: such parameters that kept their zeros: what they switch off is compared in shape alone.
        unheard: tensors that were cut and that no output answers to, whatever was tried; likewise.
    """

    output_error: float
    difference_error: float
    response: float
    woken: int = 0
    asleep: int = 0
    unheard: tuple[str, ...] = ()


class NoNumber(ProofError):
    """The reference gives NaN: nothing can be compared with it."""


def equivalence(reference: Executor, program: Program, seed: int) -> Equivalence:
    """Prove that `program` computes what `reference` does on the program's example and on another input.

    Args:
        reference: runs the other program, in float64.
        program: what is judged, in float64 and evaluation mode.
        seed: of the other inputs.

    Raises:
        ProofError: an output differs by more than 1e-9 relative, is NaN, or has another shape.
    """
    inputs = program.flat_example()
    with torch.no_grad():
        wanted = reference.run_flat(inputs)
        others, other_wanted = _moving(reference, inputs, wanted, seed)
        answers = [(wanted, run_flat(program, inputs)), (other_wanted, run_flat(program, others))]
    outputs = [_Output(*pair, *found) for pair, found in _by_output(answers)]
    return _compare(outputs, program.signature.outputs)


def _moving(
    reference: Executor, inputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], seed: int
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """The first other inputs that move the outputs, and those outputs; the inputs themselves if none do.

    Inputs that the original refuses (an index past its table) or answers with NaN are left out.
    """
    for others in variations(inputs, seed):
        try:
            answer = reference.run_flat(others)
        except InputError:
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
                f"{name} has shape {tuple(self.found.shape)}, and the reference {tuple(self.wanted.shape)}"
            )
        if bool(self.wanted.isnan().any() | self.other_wanted.isnan().any()):
            raise NoNumber(
                f"{name} of the reference is NaN for the example inputs",
                hint="pass example inputs for which the model gives numbers",
            )
        if self.inexact:
            self._check_infinities(name)
        elif not (torch.equal(self.wanted, self.found) and torch.equal(self.other_wanted, self.other_found)):
            raise ProofError(f"{name}, of {self.wanted.dtype}, differs from the reference", hint=_FAULT)

    def _check_infinities(self, name: str) -> None:
        for wanted, found in ((self.wanted, self.found), (self.other_wanted, self.other_found)):
            odd = ~(wanted.isfinite() & found.isfinite())
            if bool((wanted[odd] != found[odd]).any()):
                raise ProofError(f"{name} is infinite or NaN where the reference is not", hint=_FAULT)

    @property
    def inexact(self) -> bool:
        return self.wanted.is_floating_point() or self.wanted.is_complex()

    def moving(self) -> _Output:
        """The finite entries that are not one constant, right in both answers."""
        same = (self.found == self.wanted) & (self.other_found == self.other_wanted)
        numbers = self.wanted.isfinite() & self.other_wanted.isfinite()
        live = numbers & ~(same & (self.wanted == self.other_wanted))
        return _Output(self.wanted[live], self.other_wanted[live], self.found[live], self.other_found[live])


_FAULT = "this is a fault in fxcompress: please report it with the model's graph (`fxcompress inspect`)"


def _compare(outputs: Sequence[_Output], names: Sequence[str]) -> Equivalence:
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
                f"{name} differs from the reference: {error / max(size, 1e-300):.2e} of its size, "
                f"{drift / max(moved, 1e-300):.2e} of its response to a change of input (allowed "
                f"{TOLERANCE:.0e})",
                hint=_FAULT,
            )
        output_error = max(output_error, error / size if size else 0.0)
        difference_error = max(difference_error, drift / moved if moved else 0.0)
        response = max(response, moved / size if size else 0.0)
    return Equivalence(output_error, difference_error, response)


def _peak(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0

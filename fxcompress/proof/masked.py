"""Masked equivalence: what removal must compute, shown on the original graph.

Removing a channel must equal switching it off where it is *consumed*: the original program is run in float64 with the
consumers' slices of every removed position set to zero (an operand of the contraction), and with every normalisation
and reduction over a removed axis computed on the kept positions. The pruned program must then give the same outputs to
1e-9 relative.

Deep networks hardly depend on their input, and a comparison of outputs would then accept almost anything. So what is
compared is the *difference* between the outputs for two inputs, beside the outputs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from fxcompress.analysis.groups import analyse
from fxcompress.axes.positions import Indices, kept
from fxcompress.errors import ProofError
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.program import Program
from fxcompress.ops.arguments import arguments
from fxcompress.ops.consumption import consumed
from fxcompress.ops.resize import Resizing, resize
from fxcompress.plan.pruning import PruningPlan

TOLERANCE = 1e-9
"""Largest relative difference: float64 keeps about 1e-16, and depth amplifies it by far less than 1e7."""


@dataclass(frozen=True)
class MaskedEquivalence:
    """What was compared.

    Args:
        output_error: largest difference of an output, relative to the largest output.
        difference_error: largest difference in how outputs answer a change of input, relative to that answer.
        response: how much the outputs moved between the two inputs, relative to their size. When it is zero, the
            model ignores its input, and the comparison of differences says nothing.
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
        seed: of the second input.

    Raises:
        ProofError: an output differs by more than 1e-9 relative, or has another shape.
    """
    reference, pruned = before.to(torch.float64), after.to(torch.float64)
    masked = MaskedExecutor(reference, plan)
    inputs = reference.flat_example()
    answers = []
    for tensors in (inputs, vary(inputs, seed)):
        with torch.no_grad():
            answers.append((_floating(masked.run_flat(tensors)), _floating(run_flat(pruned, tensors))))
    return _compare(answers, before.signature.outputs)


def vary(inputs: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Other inputs of the same kind: noise of the same scale added to floats, integers shuffled, flags kept."""
    generator = torch.Generator().manual_seed(seed)
    varied = []
    for tensor in inputs:
        if not isinstance(tensor, torch.Tensor) or tensor.dtype == torch.bool or not tensor.numel():
            varied.append(tensor)
        elif tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            scale = tensor.double().std() if tensor.numel() > 1 else torch.tensor(1.0)
            varied.append((tensor.double() + noise * (scale + 1e-3)).to(tensor.dtype))
        else:
            order = torch.randperm(tensor.numel(), generator=generator)
            varied.append(tensor.flatten()[order].reshape(tensor.shape))
    return varied


def _floating(values: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


def _compare(
    answers: list[tuple[list[torch.Tensor], list[torch.Tensor]]], names: Sequence[str]
) -> MaskedEquivalence:
    output_error = difference_error = response = 0.0
    for place, (wanted, found) in enumerate(zip(*answers[0], strict=True)):
        name = names[place] if place < len(names) else f"output {place}"
        if wanted.shape != found.shape:
            raise ProofError(
                f"{name} has shape {tuple(found.shape)} after pruning, and had {tuple(wanted.shape)}"
            )
        other_wanted, other_found = answers[1][0][place], answers[1][1][place]
        size = _peak(wanted)
        moved = _peak(other_wanted - wanted)
        error = _peak(found - wanted)
        drift = _peak((other_found - found) - (other_wanted - wanted))
        # Cancellation makes the difference of two outputs uncertain by their rounding, a few units of 1e-16 each.
        rounding = 1e-13 * size
        if not error <= TOLERANCE * size or not drift <= TOLERANCE * moved + rounding:
            raise ProofError(
                f"{name} differs from the masked original: {error / max(size, 1e-300):.2e} of its size, "
                f"{drift / max(moved, 1e-300):.2e} of its response to a change of input (allowed {TOLERANCE:.0e})",
                hint="this is a fault in fxcompress: please report it with the model's graph (`fxcompress inspect`)",
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
        operand = consumed(n)
        if operand is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        source, dim = operand
        place = list(n.args).index(source)
        masked = list(args)
        masked[place] = self._switch_off(source, dim, masked[place])
        return self.after(n, self.call_function(n.target, tuple(masked), kwargs))  # type: ignore[arg-type]

    def _kept(self, source: Node, dim: int) -> Indices:
        """Positions that stay: as the plan says for stored tensors, as analysed for activations."""
        if source.op == "get_attr":
            rank = len(self.space.of(source))
            stay = self.stored.get(str(source.target), {}).get(dim % rank)
            if stay is not None:
                return torch.tensor(stay).numpy()
        return kept(self.space.of(source)[dim], self.indices)

    def _switch_off(self, source: Node, dim: int, value: torch.Tensor) -> torch.Tensor:
        stay = torch.from_numpy(self._kept(source, dim))
        if len(stay) == value.shape[dim]:
            return value
        mask = torch.zeros(value.shape[dim], dtype=value.dtype)
        mask[stay] = 1
        shape = [1] * value.dim()
        shape[dim] = -1
        return value * mask.reshape(shape)

    def _on_kept_positions(self, n: Node) -> Any:
        """Compute a normalisation or reduction on the kept positions of everything it reads; put its result back."""
        assert isinstance(n.target, torch._ops.OpOverload)
        bound = arguments(n)
        change = resize(self.resizing, n)
        bound.update(change.arguments if change is not None else {})
        values = {name: map_arg(value, self._thinned) for name, value in bound.items()}
        return self._put_back(n, n.target(**values))

    def _thinned(self, source: Node) -> Any:
        value = self.env[source]
        return self._thin(source, value) if isinstance(value, torch.Tensor) else value

    def _thin(self, source: Node, value: torch.Tensor) -> torch.Tensor:
        for dim in range(value.dim()):
            stay = torch.from_numpy(self._kept(source, dim))
            if len(stay) < value.shape[dim]:
                value = value.index_select(dim, stay)
        return value

    def _put_back(self, n: Node, result: Any) -> Any:
        """Spread kept positions over the original shape, zeros elsewhere (they are switched off where consumed)."""
        if isinstance(result, tuple | list):
            several = self.space.values[n]
            return [self._spread(dims, item) for dims, item in zip(several, result, strict=True)]
        return self._spread(self.space.of(n), result)

    def _spread(self, dims: Any, value: torch.Tensor) -> torch.Tensor:
        for place, dim in enumerate(dims):
            stay = torch.from_numpy(kept(dim, self.indices))
            if len(stay) < dim.size:
                shape = [*value.shape]
                shape[place] = dim.size
                value = torch.zeros(shape, dtype=value.dtype).index_copy(place, stay, value)
        return value

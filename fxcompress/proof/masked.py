"""Masked equivalence: what removal must compute, shown on the original graph.

Removing a channel must equal switching it off where it is *consumed*: the original program is run in float64
with the consumers' slices of every removed position set to zero (an operand of the contraction), and with
every normalisation and reduction over a removed axis computed on the kept positions. The pruned program must
then give the same outputs to 1e-9 relative.

How programs are compared is said in `proof.comparison`, and in `proof.dormant` what is done about branches
that zeros switch off.

What removal *means* is taken from the operators, not from the model's intent: `x.sum(1) / 64` over 64
channels keeps its 64 when channels go, exactly as if they were zero; `x.mean(1)` is the mean of those that
stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from fxcompress.analysis.groups import analyse
from fxcompress.axes.positions import Indices, kept
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.program import Program
from fxcompress.ops.arguments import arguments
from fxcompress.ops.consumption import Operand, consumed
from fxcompress.ops.resize import Resizing, resize
from fxcompress.passes.loosening import loosened
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.proof.comparison import Equivalence, NoNumber, equivalence, variations
from fxcompress.proof.dormant import Waking, add, unheard


def masked_equivalence(before: Program, after: Program, plan: PruningPlan, *, seed: int = 0) -> Equivalence:
    """Prove that `after` is `before` without the channels that `plan` removes.

    Where the plan was made after rewrites that `before` lacks, it is first proven that they change nothing;
    channels are then switched off in the rewritten original. Where parameters of zero switch parts of the
    model off, all of this is done once more with other numbers in their place.

    Args:
        before: the user's program, or what the plan was made for.
        after: the pruned program.
        plan: what was removed.
        seed: of the other inputs, and of what replaces zeros.

    Raises:
        ProofError: an output differs by more than 1e-9 relative, is NaN, or has another shape.
    """
    original, pruned = before.to(torch.float64).eval(), after.to(torch.float64).eval()
    reference = loosened(original, plan.rewrites)
    masked = MaskedExecutor(reference, plan)

    def compared() -> Equivalence:
        if reference is not original:
            equivalence(Executor(original), reference, seed)
        return equivalence(masked, pruned, seed)

    found = compared()
    waking = Waking.of(original, reference, pruned, plan, seed)
    found = replace(found, asleep=waking.asleep)
    if waking.original:
        add(original, waking.original)
        if reference is not original:
            add(reference, waking.reference)
        add(pruned, waking.pruned)
        found = _with_second(found, compared, len(waking.original))
    inputs = pruned.flat_example()
    others = next(variations(inputs, seed), inputs)
    cut = {name for name, dims in masked.stored.items() if dims} | set(plan.kept)
    return replace(found, unheard=unheard(pruned, cut, (inputs, others)))


def _with_second(found: Equivalence, compared: Callable[[], Equivalence], woken: int) -> Equivalence:
    """The larger errors of both comparisons; the first alone where the model has no answer to the second."""
    try:
        again = compared()
    except NoNumber:
        return replace(found, asleep=found.asleep + woken)
    return replace(
        found,
        output_error=max(found.output_error, again.output_error),
        difference_error=max(found.difference_error, again.difference_error),
        woken=woken,
    )


class MaskedExecutor(Executor):
    """Runs the original graph with removed positions switched off where they are consumed."""

    def __init__(self, program: Program, plan: PruningPlan) -> None:
        super().__init__(program)
        analysis = analyse(program)
        self.space = analysis.space
        self.indices = plan.indices(analysis)
        self.stored = {
            name: program.origins.own(name, plan.kept, plan.copies)
            for name in (str(node.target) for node in walk.tensor_nodes(program))
        }
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

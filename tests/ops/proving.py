"""Prune at random and hold the result against every oracle there is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.analysis.cost import cost
from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.graph.program import Example, Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from fxcompress.proof.masked import masked_equivalence
from tests.architectures.programs import largest_difference, zeroed


@dataclass(frozen=True)
class Proven:
    """A program, what was removed from it at random, and the result that passed every oracle."""

    program: Program
    analysis: Analysis
    plan: PruningPlan
    pruned: Program

    @property
    def sizes(self) -> list[int]:
        return sorted(group.size for group in self.analysis.groups)


def prove(program: Program, seeds: int = 2) -> Proven:
    """Remove random indices of every group, several times; each result must pass every oracle.

    Oracles: well-formed; masked equivalence at two batch sizes; zeroed parameters (where no removed axis is
    normalised over); the price that the plan announced.
    """
    analysis = analyse(program)
    for seed in range(seeds):
        plan = shrinking_plan(analysis, seed)
        pruned = PruneChannels(plan).run(program).program
        well_formed(pruned)
        assert cost(pruned) == plan.after
        masked_equivalence(program, pruned, plan)
        if program.signature.dynamic:
            masked_equivalence(at_batch(program, 3), at_batch(pruned, 3), plan)
        if not any(analysis.group(name).statistics for name in plan.channels):
            _same_as_zeroed(program, pruned, plan)
    return Proven(program, analysis, plan, pruned)


def shrinking_plan(analysis: Analysis, seed: int) -> PruningPlan:
    """At least one index goes from every group; as few as can be stay for seed 0, a random number
    otherwise.
    """
    generator = np.random.default_rng(seed)
    channels = {}
    for group in analysis.groups:
        least = 2 if group.statistics and group.size > 2 else 1
        count = int(generator.integers(least, group.size)) if seed else least
        stay = sorted(generator.permutation(group.size)[:count].tolist())
        channels[group.name] = tuple(stay)
    return make_plan(analysis, channels)


def at_batch(program: Program, batch: int) -> Program:
    """The same program with an example of another batch size (rows repeated)."""
    first = next(iter(program.signature.dynamic.values()))
    assert 0 in first

    def grown(leaf: Tensor) -> Tensor:
        rows = torch.arange(batch) % len(leaf)
        noise = torch.randn(batch, *leaf.shape[1:], generator=torch.Generator().manual_seed(batch))
        return leaf[rows] + noise if leaf.is_floating_point() else leaf[rows]

    example = Example(*pytree.tree_map(grown, (program.example.args, program.example.kwargs)))
    copy = replace(program.copy(), example=example)
    copy.infer_from_example()
    return copy


def _same_as_zeroed(program: Program, pruned: Program, plan: PruningPlan) -> None:
    for batch in (2, 3) if program.signature.dynamic else (2,):
        source = at_batch(program, batch) if program.signature.dynamic else program
        wide, narrow = zeroed(source, plan).to(torch.float64), pruned.to(torch.float64)
        inputs = [t.double() if t.is_floating_point() else t for t in source.flat_example()]
        with torch.no_grad():
            expected = [t.double() for t in pytree.tree_leaves(wide.module(*_args(wide, inputs)))]
            found = [t.double() for t in pytree.tree_leaves(narrow.module(*_args(narrow, inputs)))]
        assert all(tensor.abs().max() > 0 for tensor in expected), "nothing is left to compare"
        assert largest_difference(found, expected) < 1e-9


def _args(program: Program, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    assert not program.example.kwargs
    return pytree.tree_unflatten(inputs, program.signature.in_spec)[0]

"""Captured programs of the catalog, shared between tests, and what tests do to all of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.graph import edit, walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from tests.architectures.catalog import Inputs, by_name

EXACT = 1e-9
"""Relative, in float64: far above rounding (1e-16, amplified by depth), far below any wrong channel."""


@cache
def captured(name: str, seed: int = 0) -> Program:
    """The program of an architecture with randomised parameters. Shared: passes copy what they edit."""
    architecture = by_name(name)
    return capture(
        architecture.model(seed), architecture.example(), dynamic_shapes=architecture.dynamic_shapes
    )


def exported_again(pruned: Program, example: Inputs, others: Inputs, dynamic_shapes: Any = None) -> None:
    """What was pruned is a model like any other: captured from its module alone it is the same, to the bit.

    `others` are inputs of other sizes than the example, where the program has any.
    """
    again = capture(pruned.module, example, dynamic_shapes=dynamic_shapes)
    assert analyse(again).price.at({}) == analyse(pruned).price.at({}), "a second capture is the same model"
    assert largest_difference(call(again, others), call(pruned, others)) == 0.0


def call(function: Any, inputs: Inputs) -> list[Tensor]:
    """The flat tensors that a model or program returns for positional or keyword inputs; no gradients."""
    with torch.no_grad():
        outputs = function(**inputs) if isinstance(inputs, dict) else function(*inputs)
    structure = dict(outputs) if isinstance(outputs, dict) else outputs
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


def in_double(inputs: Inputs) -> Inputs:
    """The same inputs with floating tensors in float64."""
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, inputs)


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest absolute difference, relative to the largest value of `right`; shapes must agree."""
    assert [tensor.shape for tensor in left] == [tensor.shape for tensor in right]
    scale = max(tensor.abs().max().item() for tensor in right)
    gaps = [(one - other).abs().max().item() for one, other in zip(left, right, strict=True)]
    return float(np.max(gaps)) / scale  # NaN if any is: the max of Python forgets one that is not the first


def at_sizes(program: Program, name: str, batch: int, length: int) -> list[Tensor]:
    """Flat inputs of other sizes than the program was traced with."""
    inputs = by_name(name).example(batch, seed=batch, length=length)
    return program.flat_inputs((), inputs) if isinstance(inputs, dict) else program.flat_inputs(inputs, {})


def random_plan(analysis: Analysis, seed: int, *, statistics: bool = True, least: float = 0.0) -> PruningPlan:
    """A plan that keeps a random number of random indices of every group; some groups stay whole.

    Without `statistics`, groups that a normalisation averages over are left whole as well. At least the share
    `least` of each group stays.
    """
    generator = np.random.default_rng(seed)
    channels = {}
    for group in analysis.groups:
        count = int(generator.integers(max(1, round(least * group.size)), group.size + 1))
        chosen = sorted(generator.permutation(group.size)[:count].tolist())
        if count < group.size and (statistics or not group.statistics):
            channels[group.name] = tuple(chosen)
    return make_plan(analysis, channels)


def zeroed(program: Program, plan: PruningPlan) -> Program:
    """The program with every removed slice of every parameter set to zero, read from `plan.kept` alone.

    It must compute what the pruned program does, unless a removed axis is normalised over. Knowing nothing of
    the analysis, it also proves that the plan is stated in the user's names and coordinates.
    """
    result = program.copy()
    for name, dims in plan.kept.items():
        tensor = walk.tensor(program, name).detach().clone()
        for dim, stay in dims.items():
            removed = np.setdiff1d(np.arange(tensor.shape[dim]), stay)
            if name in dict(program.module.named_parameters(remove_duplicate=False)):
                tensor.index_fill_(dim, torch.from_numpy(removed), 0)
        edit.set_tensor(result, name, tensor)
    return result

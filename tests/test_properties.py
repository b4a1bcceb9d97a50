"""Properties that hold for every network a recipe can describe, tried on random ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import Phase, given, settings

from fxcompress.analysis.groups import analyse
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from fxcompress.recipes import LOSSLESS
from tests.architectures.programs import (
    EXACT,
    call,
    exported_again,
    in_double,
    largest_difference,
    random_plan,
    zeroed,
)
from tests.architectures.random_graphs import Recipe, Step, recipes

Property = Callable[[Recipe], None]


@lru_cache(maxsize=8)
def captured(recipe: Recipe) -> Program:
    return capture(recipe.model(), recipe.inputs())


def captures_exactly(recipe: Recipe) -> None:
    """A captured program computes what the model does at another batch size, and so does its archive."""
    program, inputs = captured(recipe), recipe.inputs(3, seed=1)
    well_formed(program)
    assert largest_difference(call(program, inputs), call(recipe.model(), inputs)) == 0.0
    with TemporaryDirectory() as folder:
        program.save(Path(folder) / "program.fxc")
        loaded = load(Path(folder) / "program.fxc")
    assert str(loaded) == str(program)
    assert largest_difference(call(loaded, inputs), call(program, inputs)) == 0.0


def prunes_exactly(recipe: Recipe) -> None:
    """Removing channels is masking them, by two oracles; what is left is exported like any model."""
    program = captured(recipe)
    analysis = analyse(program)
    plan = random_plan(analysis, recipe.seed)
    pruned = PruneChannels(plan).run(program).program
    well_formed(pruned)
    masked_equivalence(program, pruned, plan)
    assert analyse(pruned).price.at({}) == plan.after
    exported_again(pruned, recipe.inputs(), recipe.inputs(3, seed=2))
    plain = random_plan(analysis, recipe.seed + 1, statistics=False)
    pruned = PruneChannels(plain).run(program).program
    inputs = in_double(recipe.inputs(3, seed=1))
    expected = call(zeroed(program, plain).to(torch.float64), inputs)
    assert largest_difference(call(pruned.to(torch.float64), inputs), expected) < EXACT


def fuses_exactly(recipe: Recipe) -> None:
    """The lossless stages keep the function, before and after pruning."""
    program = captured(recipe).to(torch.float64)
    pruned = PruneChannels(random_plan(analyse(program), recipe.seed)).run(program).program
    inputs = in_double(recipe.inputs(3, seed=1))
    for before in (program, pruned):
        fused = Journal().apply_all(LOSSLESS, before)
        assert largest_difference(call(fused, inputs), call(before, inputs)) < EXACT


def lowers_faithfully(recipe: Recipe) -> None:
    """The ONNX session computes what the fused, pruned program does, at another batch size."""
    program = captured(recipe)
    pruned = PruneChannels(random_plan(analyse(program), recipe.seed)).run(program).program
    deployed = Journal().apply_all(LOSSLESS, pruned)
    float_parity(deployed, lower(deployed), recipe.inputs(3, seed=1))


FAULTS = (
    # A grouped convolution behind a structure that its groups do not fit was to be regrouped: `Unalignable`.
    Recipe(
        steps=(
            Step("convolution", -1, -5, 6, 3),
            Step("norm", -3, -3, 3, 3),
            Step("shuffle", -2, -2, 2, 2),
            Step("attention", -1, -1, 3, 6),
            Step("concatenate", -2, -5, 4, 1),
            Step("split", -3, -2, 2, 2),
            Step("convolution", -1, -5, 6, 3),
        ),
        seed=1,
    ),
)
"""Recipes that once broke a property."""

WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""A recipe is readable as it is, and shrinking one takes minutes."""


def every_exact_property(recipe: Recipe) -> None:
    captures_exactly(recipe)
    prunes_exactly(recipe)
    fuses_exactly(recipe)


PROPERTIES = (every_exact_property, lowers_faithfully)
each_property = pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)


def tried(holds: Property, *, examples: int, steps: int) -> None:
    settings(max_examples=examples, derandomize=True, phases=WITHOUT_SHRINKING)(
        given(recipes(steps))(holds)
    )()


@each_property
@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_past_faults(holds: Property, fault: int) -> None:
    holds(FAULTS[fault])


@each_property
def test_property(holds: Property) -> None:
    tried(holds, examples=3 if holds is lowers_faithfully else 8, steps=6)


@pytest.mark.slow
@each_property
def test_property_more(holds: Property) -> None:
    tried(holds, examples=20 if holds is lowers_faithfully else 40, steps=10)

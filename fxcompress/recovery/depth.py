"""Whole residual blocks, measured, chosen, left out and proven in one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxcompress.analysis.influence import influence
from fxcompress.analysis.residual import residual_blocks
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.remove_blocks import RemoveBlocks
from fxcompress.pipeline import Journal
from fxcompress.plan.depth import Depth, DepthPlan, plan_depth
from fxcompress.proof.comparison import Equivalence
from fxcompress.proof.determinism import refuse_random
from fxcompress.proof.skipped import skipped_equivalence


@dataclass(frozen=True)
class Shortened:
    """A program without some of its blocks: hand it to your training, or to `optimize`.

    Args:
        program: without the blocks, in evaluation mode.
        plan: which blocks went, and what each of them contributed.
        proof: of the removal.
    """

    program: Program
    plan: DepthPlan
    proof: Equivalence


def shorten(
    model: nn.Module | Program,
    example_inputs: Any = None,
    *,
    calibration: Iterable[Any],
    depth: float | Depth = 0.25,
) -> Shortened:
    """Leave out the residual blocks that the outputs miss least; the model given stays as it is.

    Args:
        model: a module, or a program in evaluation mode.
        example_inputs: as `capture` takes them; leave out for a program.
        calibration: batches on which the influence of each block is measured; read once.
        depth: the share of the MACs to remove, or options.

    Raises:
        InputError, BudgetError: no block can go, or all together are not enough.
        NotSupported: the model draws random numbers in evaluation mode.
        ProofError: the result is not the original with those blocks multiplied by zero.
    """
    options = depth if isinstance(depth, Depth) else Depth(depth)
    program = model if isinstance(model, Program) else capture(model, example_inputs)
    if program.training:
        raise InputError("the program is in training mode", hint="call program.eval() first")
    refuse_random(program)
    blocks, _ = residual_blocks(program)
    measured = influence(program, blocks, calibration, options.influence)
    plan = plan_depth(program, options, measured)
    shorter = Journal().apply(RemoveBlocks(plan), program)
    return Shortened(shorter.copy(share=False), plan, skipped_equivalence(program, shorter, plan))

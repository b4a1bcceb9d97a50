"""What a recipe may ask beside channels: whole residual blocks left out, single weights zeroed."""

from __future__ import annotations

from collections.abc import Iterator

from fxcompress.analysis.influence import influence
from fxcompress.analysis.residual import residual_blocks
from fxcompress.api.request import Request
from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.passes.apply_masks import ApplyMasks
from fxcompress.passes.remove_blocks import RemoveBlocks
from fxcompress.pipeline import Journal
from fxcompress.plan.depth import plan_depth
from fxcompress.plan.masking import plan_sparsity
from fxcompress.plan.sparsity import STATEMENT
from fxcompress.proof.comparison import TOLERANCE
from fxcompress.proof.skipped import skipped_equivalence
from fxcompress.report.report import Proof


def shortened(
    request: Request, program: Program, journal: Journal
) -> tuple[Program, tuple[Proof, ...], tuple[str, ...]]:
    """Leave out the residual blocks that the outputs miss least, where the recipe asks for it.

    Returns:
        The program, the proof of the removal, and notes.

    Raises:
        InputError: there is no calibration data, or it can be read only once.
    """
    depth = request.recipe.depth
    if depth is None:
        return program, (), ()
    if request.calibration is None or isinstance(request.calibration, Iterator):
        raise InputError(
            "depth needs calibration data that can be read again: the influence of blocks is measured on it",
            hint="pass calibration=[batch, ...] or a DataLoader: some dozens of typical inputs",
        )
    with journal.step("measure-influence"):
        blocks, _ = residual_blocks(program)
        measured = influence(program, blocks, request.calibration, depth.influence)
        plan = plan_depth(program, depth, measured)
    shorter = journal.apply(RemoveBlocks(plan), program)
    with journal.step("prove-depth"):
        found = skipped_equivalence(program, shorter, plan)
    error = max(found.output_error, found.difference_error)
    detail = "float64, against the original with the branches of the blocks switched off"
    names = ", ".join(plan.modules.get(name) or name for name in plan.removed)
    note = f"{len(plan.removed)} residual blocks are left out: {names}"
    return shorter, (Proof("skipped-equivalence", error, TOLERANCE, detail),), (note,)


def sparsified(request: Request, program: Program, journal: Journal) -> tuple[Program, tuple[str, ...]]:
    """Zero single weights, where the recipe asks for it; returns the program and notes."""
    if request.recipe.sparsify is None:
        return program, ()
    with journal.step("plan-masks"):
        plan = plan_sparsity(program, request.recipe.sparsify)
    masked = journal.apply(ApplyMasks(plan), program)
    return masked, (f"{plan.zeroed} of {plan.total} weights are zero; {STATEMENT}",)

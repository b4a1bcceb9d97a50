"""Compensation inside one `optimize` call: when it runs, and what the report says of it.

Layers are re-fitted first (`Compensate`), and then the statistics of batch norms measured anew. Each is kept
only where that brings the outputs closer on samples that it was not fitted to, so that the second mostly
counts where the first had to leave layers alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from fxcompress.api.request import Request
from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.passes.compensate import Compensate, Compensated
from fxcompress.passes.reestimate_batch_norm import ReestimateBatchNorm, Reestimated
from fxcompress.pipeline import Journal
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.report.report import Proof

ONCE = "compensation was left out: the calibration data can be read only once (pass a list or a DataLoader)"


def compensated(
    request: Request, original: Program, pruned: Program, plan: PruningPlan, journal: Journal
) -> tuple[Program, tuple[Proof, ...], tuple[str, ...]]:
    """Re-fit a pruned program where that was asked for, or where there is calibration data and nobody minds.

    Returns:
        The program, what the report shows among the proofs, and notes.

    Raises:
        InputError: it was asked for without calibration data, or with data that can be read only once.
    """
    asked = request.prune.compensate if request.prune is not None else False
    if asked is False or not plan.channels:
        return pruned, (), ()
    if request.calibration is None:
        if asked is None:
            return pruned, (), ()
        raise InputError(
            "compensate=True needs calibration data: layers are re-fitted to the original's outputs on it",
            hint="pass calibration=[batch, ...], some hundreds of typical inputs; labels are not read",
        )
    if isinstance(request.calibration, Iterator):
        if asked is None:
            return pruned, (), (ONCE,)
        raise InputError(
            "compensate=True reads the calibration data beside other steps, and it can be read only once",
            hint="pass a list of batches or a DataLoader, which can be read more than once",
        )
    refitted = journal.outcome(Compensate(original, plan, request.calibration), pruned)
    normed = journal.outcome(ReestimateBatchNorm(request.calibration, original), refitted.program)
    found = []
    if isinstance(refitted, Compensated) and refitted.program is not pruned:
        found.append(_finding(refitted))
    if isinstance(normed, Reestimated) and normed.program is not refitted.program:
        found.append(_of_norms(normed))
    refusals = tuple(str(at) for at in refitted.declined if at.site == "the outputs")
    return normed.program, tuple(found), refusals if refitted.program is pruned else ()


def _of_norms(outcome: Reestimated) -> Proof:
    """The error with new statistics, bounded by that with those there were."""
    detail = (
        f"squared error of the outputs as a share of their variance, with the statistics before "
        f"{outcome.before:.3g}; {len(outcome.changed)} batch norms measured on {outcome.used} samples, "
        f"judged on {outcome.judged} others"
    )
    return Proof("batch-norm-statistics", outcome.after, outcome.before, detail)


def _finding(outcome: Compensated) -> Proof:
    """The error that is left, bounded by that of removal alone."""
    back = outcome.judged + (outcome.reported if outcome.apart else 0)
    detail = (
        f"squared error of the outputs as a share of their variance, removal alone {outcome.before:.3g}; "
        f"{len(outcome.changed)} layers re-fitted on {outcome.used - back} samples, "
    )
    if outcome.apart:
        detail += f"chosen on {outcome.judged} others, and the error is that of {outcome.reported} more"
    else:
        detail += f"judged on {outcome.judged} others; few samples: the error is optimistic"
    return Proof("compensation", outcome.after, outcome.before, detail)

"""Skipped equivalence: a program without blocks is the original with those blocks multiplied by zero.

The original program is run in float64 with the branch `f(x)` of every removed addition multiplied by zero, as
the plan names them; the program without the blocks must give the same outputs to 1e-9 relative, and answer a
change of input alike. See `proof.comparison` for what is compared.
"""

from __future__ import annotations

import torch

from fxcompress.analysis.influence import SkippingExecutor
from fxcompress.graph.program import Program
from fxcompress.plan.depth import DepthPlan
from fxcompress.proof.comparison import Equivalence, equivalence


def skipped_equivalence(before: Program, after: Program, plan: DepthPlan, *, seed: int = 0) -> Equivalence:
    """Prove that `after` is `before` without the blocks that `plan` removes.

    Args:
        before: the program the plan was made for.
        after: the program without the blocks.
        plan: what was removed.
        seed: of the other inputs.

    Raises:
        ProofError: an output differs by more than 1e-9 relative, is NaN, or has another shape.
    """
    reference, shortened = before.to(torch.float64).eval(), after.to(torch.float64).eval()
    return equivalence(SkippingExecutor(reference, plan.removed), shortened, seed)

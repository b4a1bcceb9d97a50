"""What to remove: how a plan is made from saliency, rules and a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fxcompress.analysis.groups import Analysis, Group
from fxcompress.analysis.saliency import l2
from fxcompress.errors import BudgetError, InputError
from fxcompress.graph import walk
from fxcompress.numerics.saliency import Scores
from fxcompress.plan.budget import Candidate, allocate
from fxcompress.plan.protection import protection
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan, make_plan

_OBSTACLES = 3
"""How many frozen tensors the refusal of a budget names."""


def plan_pruning(analysis: Analysis, options: Prune, block: int) -> PruningPlan:
    """Choose what to remove so that at most `1 - options.ratio` of the MACs remain.

    Args:
        analysis: groups and prices of the program.
        options: how much, and by which rules.
        block: the target's channel block, used unless the options name one.

    Raises:
        InputError: the program has no prunable group.
        BudgetError: the budget is below the reachable minimum.
    """
    protected = protection(analysis, options)
    scores = l2(analysis)
    step = options.block or block
    candidates = [
        _candidate(group, scores[group.name], step, options.max_ratio)
        for group in analysis.groups
        if group.name not in protected
    ]
    if not candidates:
        raise InputError(
            "the model has no prunable group",
            hint="`fxcompress inspect` lists what is frozen or protected, and why",
        )
    axes = {group.name: group.axis for group in analysis.groups}

    def macs(widths: Mapping[str, int]) -> float:
        return analysis.price.macs.at({axes[name]: width for name, width in widths.items()})

    full = macs({})
    try:
        state = allocate(candidates, macs, full * (1 - options.ratio))
    except BudgetError as error:
        raise _with_obstacles(error, analysis) from None
    channels = {
        item.name: _best(item.scores, state.widths[item.name])
        for item in candidates
        if state.widths[item.name] < item.size
    }
    relaxed = {name: granted for name, granted in state.relaxed.items() if name in channels}
    return make_plan(analysis, channels, protected, relaxed)


def _with_obstacles(error: BudgetError, analysis: Analysis) -> BudgetError:
    """The error with the largest tensors of which no axis may shrink, and why."""
    reasons: dict[str, dict[str, str]] = {}
    for item in analysis.frozen:
        reasons.setdefault(item.axis.rpartition("[")[0], {})[item.axis] = item.reason
    whole = [
        (walk.tensor(analysis.program, node).numel(), str(node.target))
        for node in walk.tensor_nodes(analysis.program)
        if len(reasons.get(str(node.target), {})) == walk.tensor(analysis.program, node).ndim > 1
    ]
    named = [
        f"{name} ({', '.join(dict.fromkeys(reasons[name].values()))})"
        for _, name in sorted(whole, reverse=True)[:_OBSTACLES]
    ]
    return error.note(f"frozen as a whole are {', '.join(named)}") if named else error


def _candidate(group: Group, scores: Scores, block: int, max_ratio: float) -> Candidate:
    """Alignment is wanted of the tensors: an index that stands for many positions may step more finely."""
    step = block // math.gcd(block, group.positions)
    removable = int(group.size * max_ratio + 1e-9)
    # A deviation over a single position is no number.
    least = 2 if group.statistics else 1
    return Candidate(group.name, scores, step, min(group.size, max(least, group.size - removable)))


def _best(scores: Scores, count: int) -> tuple[int, ...]:
    """The `count` most salient indices, ascending; ties go to the lower index."""
    order = np.argsort(-scores, kind="stable")[:count]
    return tuple(int(place) for place in np.sort(order))

"""What to remove: how a plan is made from saliency, rules and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fxcompress.analysis.evidence import Evidence
from fxcompress.analysis.groups import Analysis, Group
from fxcompress.analysis.latency import LatencyPrice
from fxcompress.analysis.saliency import score
from fxcompress.axes.expression import Axis
from fxcompress.errors import BudgetError, InputError
from fxcompress.graph import walk
from fxcompress.numerics.saliency import Scores
from fxcompress.plan.bounds import bounds_of
from fxcompress.plan.budget import Candidate, allocate
from fxcompress.plan.explicit import explicit_shares
from fxcompress.plan.protection import protection
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from fxcompress.plan.scope import in_scope
from fxcompress.plan.width_rules import candidate, contracted, fixed_width, width_step

_OBSTACLES = 3
"""How many frozen tensors the refusal of a budget names."""


@dataclass(frozen=True)
class Choices:
    """What may be chosen: groups that may shrink, widths that are fixed by hand, groups that stay whole."""

    candidates: tuple[Candidate, ...]
    fixed: Mapping[str, int]
    relaxed: Mapping[str, int]
    protected: Mapping[str, str]
    scores: Mapping[str, Scores]


def plan_pruning(
    analysis: Analysis,
    options: Prune,
    block: int,
    *,
    evidence: Evidence | None = None,
    latency: LatencyPrice | None = None,
    within: Mapping[str, tuple[int, int]] | None = None,
) -> PruningPlan:
    """Choose what to remove so that every bound of the options holds, the one that binds within a percent.

    Args:
        analysis: groups and prices of the program.
        options: how much, and by which rules.
        block: the target's channel block, used unless the options name one.
        evidence: what the saliency needs beside the weights.
        latency: the price in milliseconds, where the budget has a bound on them.
        within: by group name, the least and the most width, in place of what the options say; equal ones fix
            it. Rounds of pruning state their limits so, in widths of the original.

    Raises:
        InputError: the program has no prunable group, a pattern matches nothing, or a bound in milliseconds
            comes without a price.
        BudgetError: a bound is below the reachable minimum.
    """
    choices = choose_from(analysis, options, block, evidence, within)
    axes = {group.name: group.axis for group in analysis.groups}
    fixed = {axes[name]: width for name, width in choices.fixed.items()}
    bounds = bounds_of(analysis, options, latency, _free(choices, axes), fixed)
    widths, relaxed = dict(choices.fixed), dict(choices.relaxed)
    if bounds:
        try:
            state = allocate(choices.candidates, bounds)
        except BudgetError as error:
            raise _with_obstacles(error, analysis) from None
        widths.update(state.widths)
        relaxed.update(state.relaxed)
    return _plan(analysis, choices, widths, relaxed)


def narrowest_plan(
    analysis: Analysis, options: Prune, block: int, *, evidence: Evidence | None = None
) -> PruningPlan:
    """The plan of the narrowest widths that the rules allow: what no budget can go below."""
    choices = choose_from(analysis, options, block, evidence)
    widths = {**choices.fixed, **{item.name: item.floor(1) for item in choices.candidates}}
    return _plan(analysis, choices, widths, {item.name: 1 for item in choices.candidates})


def choose_from(
    analysis: Analysis,
    options: Prune,
    block: int,
    evidence: Evidence | None,
    within: Mapping[str, tuple[int, int]] | None = None,
) -> Choices:
    """Apply every rule that needs no price.

    Raises:
        InputError: the program has no prunable group, or a pattern matches nothing.
    """
    asked = explicit_shares(analysis, options.ratios)
    protected = protection(analysis, options, asked)
    shares = {name: item.share for name, item in asked.items() if name not in protected}
    scores = score(analysis, options.criterion, evidence)
    open_groups = [name for name in scores if name not in protected and name not in shares]
    ranked = in_scope(analysis, {name: scores[name] for name in open_groups}, options.scope)
    weights = contracted(analysis)
    candidates, fixed, relaxed = [], {}, {}
    for group in analysis.groups:
        if group.name in protected:
            continue
        step = width_step(group, options.block or block, weights)
        item = candidate(group, ranked.get(group.name, scores[group.name]), step, options)
        limits = (within or {}).get(group.name)
        if group.name in shares:
            _refuse_narrower(group, shares[group.name], item, options)
            width, rung = fixed_width(shares[group.name], item, bool(group.statistics))
            fixed[group.name] = width = max(width, item.least)
            rung = rung if width % rung == 0 else 1
            if rung < step:
                relaxed[group.name] = rung
        elif limits is None:
            candidates.append(item)
        elif limits[0] == limits[1]:
            fixed[group.name] = limits[0]
        else:
            candidates.append(replace(item, least=limits[0], most=limits[1]))
    if not candidates and not fixed:
        raise InputError(
            "the model has no prunable group",
            hint="`fxcompress inspect` lists what is frozen or protected, and why",
        )
    return Choices(tuple(candidates), fixed, relaxed, protected, scores)


def _refuse_narrower(group: Group, share: float, item: Candidate, options: Prune) -> None:
    """Raise where a share by hand goes below what the options keep of every group."""
    if share and group.size - round(group.size * share) < item.least:
        raise InputError(
            f"ratios asks to remove {share:.1%} of the group {group.name!r} of width {group.size}, and "
            f"max_ratio={options.max_ratio} and min_width={options.min_width} keep {item.least}",
            hint="ask for less, or raise max_ratio, or lower min_width",
        )


def _free(choices: Choices, axes: Mapping[str, Axis]) -> dict[Axis, str]:
    return {axes[item.name]: item.name for item in choices.candidates}


def _plan(
    analysis: Analysis, choices: Choices, widths: Mapping[str, int], relaxed: Mapping[str, int]
) -> PruningPlan:
    channels = {
        group.name: _best(choices.scores[group.name], widths[group.name])
        for group in analysis.groups
        if widths.get(group.name, group.size) < group.size
    }
    granted = {name: step for name, step in relaxed.items() if name in channels}
    return make_plan(analysis, channels, choices.protected, granted)


def _with_obstacles(error: BudgetError, analysis: Analysis) -> BudgetError:
    """The error with the largest tensors of which no axis may shrink, and why."""
    reasons: dict[str, dict[str, str]] = {}
    for item in analysis.frozen:
        reasons.setdefault(item.tensor, {})[item.axis] = item.reason
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


def _best(scores: Scores, count: int) -> tuple[int, ...]:
    """The `count` most salient indices, ascending; ties go to the lower index."""
    order = np.argsort(-scores, kind="stable")[:count]
    return tuple(int(place) for place in np.sort(order))

"""What to remove: options, the plan, and how a plan is made."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import numpy as np
import torch

from fxcompress.analysis.cost import Cost
from fxcompress.analysis.groups import Analysis, Group, rivals
from fxcompress.analysis.saliency import l2
from fxcompress.axes.expression import Axis, leaves
from fxcompress.axes.positions import Indices, kept
from fxcompress.errors import BudgetError, InputError, NotSupported
from fxcompress.graph import walk
from fxcompress.graph.module import tied
from fxcompress.numerics.saliency import Scores
from fxcompress.plan.budget import Candidate, allocate

_OBSTACLES = 3
"""How many frozen tensors the refusal of a budget names."""


@dataclass(frozen=True)
class Prune:
    """How much to remove, and by which rules.

    Args:
        ratio: the share of MACs to remove, between 0 and 1 (exclusive).
        saliency: how indices are ranked; `"l2"`.
        scope: `"global"`, one ranking for all groups.
        block: widths become multiples of this; None takes the target's channel block.
        max_ratio: the largest share of one group that may go.
        protect: patterns (`fnmatch`) of parameter names whose groups stay whole.
        protect_embeddings: keep the widths of indexed tables and all that is tied to them.
    """

    ratio: float = 0.5
    saliency: str = "l2"
    scope: str = "global"
    block: int | None = None
    max_ratio: float = 0.9
    protect: tuple[str, ...] = ()
    protect_embeddings: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, Real) and 0 < self.ratio < 1):
            raise InputError(
                f"prune={self.ratio!r} is not a share of the MACs between 0 and 1",
                hint="prune=0.5 removes half of the multiply-accumulates; leave it out to remove none",
            )
        if not (isinstance(self.max_ratio, Real) and 0 < self.max_ratio < 1):
            raise InputError(
                f"max_ratio={self.max_ratio!r} is not between 0 and 1", hint="0.9 keeps a tenth of each group"
            )
        if self.block is not None and not (isinstance(self.block, int) and self.block >= 1):
            raise InputError(
                f"block={self.block!r} is not a positive width", hint="16 suits AVX-512, 8 AVX2, 1 any width"
            )
        if self.saliency != "l2":
            raise NotSupported(f"saliency {self.saliency!r} is not built", hint="built: 'l2'")
        if self.scope != "global":
            raise NotSupported(f"scope {self.scope!r} is not built", hint="built: 'global'")


@dataclass(frozen=True)
class PruningPlan:
    """Which indices of which group stay, and what that means for every stored tensor.

    Args:
        channels: by group name, the indices that stay, ascending; groups that stay whole are not listed.
        sizes: the original size of each listed group.
        kept: by parameter name and dimension, the positions that stay, in the user's coordinates.
        protected: by group name, why a prunable group was left whole.
        relaxed: by group name, the width granularity where it is finer than the target's.
        before, after: exact costs.
    """

    channels: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    protected: Mapping[str, str]
    relaxed: Mapping[str, int]
    before: Cost
    after: Cost

    def indices(self, analysis: Analysis) -> dict[Axis, Indices]:
        """The plan as kept indices by leaf axis of an analysis of the same program."""
        by_name = {group.name: group for group in analysis.groups}
        found: dict[Axis, Indices] = {}
        for name, stay in self.channels.items():
            group = by_name.get(name)
            if group is None or group.size != self.sizes[name]:
                raise InputError(
                    f"the plan prunes group {name!r} of size {self.sizes[name]}, which this program does "
                    "not have",
                    hint="apply a plan to the program that it was made for",
                )
            _check_choice(group, stay)
            found[group.axis] = np.asarray(stay, dtype=np.int64)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {
            "channels": {name: list(stay) for name, stay in self.channels.items()},
            "sizes": dict(self.sizes),
            "kept": {
                name: {str(dim): list(stay) for dim, stay in dims.items()} for name, dims in self.kept.items()
            },
            "protected": dict(self.protected),
            "relaxed": dict(self.relaxed),
            "before": vars(self.before),
            "after": vars(self.after),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises InputError for other data."""
        try:
            return cls(
                channels={name: tuple(stay) for name, stay in data["channels"].items()},
                sizes={name: int(data["sizes"][name]) for name in data["channels"]},
                kept={
                    name: {int(dim): tuple(stay) for dim, stay in dims.items()}
                    for name, dims in data["kept"].items()
                },
                protected=dict(data["protected"]),
                relaxed=dict(data["relaxed"]),
                before=Cost(**data["before"]),
                after=Cost(**data["after"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is not a pruning plan: {type(error).__name__}: {error}",
                hint="pass what `PruningPlan.to_dict` returned",
            ) from error

    def __str__(self) -> str:
        lines = [
            f"{self.before.macs / 1e6:.1f} -> {self.after.macs / 1e6:.1f} MMACs, {self.before.params} -> "
            f"{self.after.params} parameters"
        ]
        for name, stay in self.channels.items():
            note = f"  (multiple of {self.relaxed[name]})" if name in self.relaxed else ""
            lines.append(f"  {name}: {self.sizes[name]} -> {len(stay)}{note}")
        lines.extend(f"  {name}: whole, {reason}" for name, reason in self.protected.items())
        return "\n".join(lines)


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


def make_plan(
    analysis: Analysis,
    channels: Mapping[str, tuple[int, ...]],
    protected: Mapping[str, str] | None = None,
    relaxed: Mapping[str, int] | None = None,
) -> PruningPlan:
    """A plan from explicit choices: by group name, the indices that stay."""
    groups = {name: analysis.group(name) for name in channels}
    indices = {groups[name].axis: np.asarray(stay, dtype=np.int64) for name, stay in channels.items()}
    for name, stay in channels.items():
        _check_choice(groups[name], stay)
    return PruningPlan(
        channels={groups[name].name: tuple(stay) for name, stay in channels.items()},
        sizes={group.name: group.size for group in groups.values()},
        kept=_kept(analysis, indices),
        protected=dict(protected or {}),
        relaxed=dict(relaxed or {}),
        before=analysis.price.at({}),
        after=analysis.price.at({axis: len(stay) for axis, stay in indices.items()}),
    )


def _check_choice(group: Group, stay: tuple[int, ...]) -> None:
    if not stay or sorted(set(stay)) != list(stay) or not 0 <= stay[0] <= stay[-1] < group.size:
        raise InputError(
            f"group {group.name!r} has {group.size} indices; {list(stay)[:8]} is not an ascending "
            "choice of them",
            hint="list at least one index, each once, in ascending order",
        )


def _kept(analysis: Analysis, indices: Mapping[Axis, Indices]) -> dict[str, dict[int, tuple[int, ...]]]:
    result: dict[str, dict[int, tuple[int, ...]]] = {}
    for group in analysis.groups:
        for member in group.members if group.axis in indices else ():
            stay = kept(member.expression, indices)
            result.setdefault(member.tensor, {})[member.dim] = tuple(int(place) for place in stay)
    return {name: dict(sorted(dims.items())) for name, dims in sorted(result.items())}


def protection(analysis: Analysis, options: Prune) -> dict[str, str]:
    """By group name, why a prunable group stays whole."""
    reasons: dict[str, str] = {}
    tables = _tables(analysis) if options.protect_embeddings else set()
    full = analysis.price.macs.at({})
    patterns = _patterns(analysis, options.protect)
    for group in analysis.groups:
        pattern = next((patterns[name] for name in _tensors(group) if name in patterns), None)
        if pattern is not None:
            reasons[group.name] = f"protected by pattern {pattern!r}"
        elif group.axis in tables:
            reasons[group.name] = "the width of an embedding is protected"
        elif analysis.price.macs.at({group.axis: 1}) == full:
            reasons[group.name] = "it takes part in no multiply-accumulate"
    for name, reason in _chosen_factors(analysis, reasons):
        reasons.setdefault(name, reason)
    return reasons


def _tensors(group: Group) -> list[str]:
    return [member.tensor for member in group.members]


def _patterns(analysis: Analysis, protect: Sequence[str]) -> dict[str, str]:
    """By name of a stored tensor, the first pattern that one of its names matches; each must match one."""
    aliases = list(tied(analysis.program.module).values())
    found: dict[str, str] = {}
    for pattern in protect:
        matched = [names for names in aliases if fnmatch.filter(names, pattern)]
        if not matched:
            raise InputError(
                f"the pattern {pattern!r} of protected parameters matches none",
                hint=f"patterns are those of fnmatch; parameters are named like {aliases[0][0]!r}",
            )
        for name in (name for names in matched for name in names):
            found.setdefault(name, pattern)
    return found


def _tables(analysis: Analysis) -> set[Axis]:
    """The axes that make up the width of what embedding operators index."""
    lookup = torch.ops.aten.embedding.default
    tables = [node.args[0] for node in analysis.program.graph.nodes if node.target is lookup]
    return {axis for table in tables for axis in leaves(analysis.space.of(table)[1])}


def _chosen_factors(analysis: Analysis, reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Of the prunable factors of one product only the largest is pruned, so that nothing is removed twice."""
    for factors in rivals(analysis):
        left = [tuple(group for group in factor if group.name not in reasons) for factor in factors]
        open_factors = [factor for factor in left if factor]
        if len(open_factors) < 2:
            continue
        chosen = max(open_factors, key=lambda factor: sum(group.size for group in factor))
        for factor in open_factors:
            if factor is not chosen:
                for group in factor:
                    yield group.name, f"the other factor of its product, {chosen[0].name}, is pruned instead"

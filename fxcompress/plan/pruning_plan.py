"""The pruning plan: which indices of which group stay, as data to print, edit, save and apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fxcompress.analysis.cost import Cost
from fxcompress.analysis.groups import Analysis, Group
from fxcompress.axes.expression import Axis
from fxcompress.axes.positions import Indices, kept
from fxcompress.errors import InputError


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

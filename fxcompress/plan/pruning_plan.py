"""The pruning plan: which indices of which group stay, as data to print, edit, save and apply.

plan = make_plan(analysis, {"conv1.weight[0]": (0, 2, 5)})     # a plan of one's own
plan = plan.with_channels(analysis, {"conv1.weight[0]": range(4)})     # a plan edited
plan.save("plan.json"); PruneChannels(PruningPlan.load("plan.json")).run(program)     # in another process
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from fxcompress.analysis.cost import Cost
from fxcompress.analysis.groups import Analysis, Group
from fxcompress.axes.expression import Axis
from fxcompress.axes.positions import Indices, kept
from fxcompress.errors import InputError
from fxcompress.graph.atomic import write_atomically
from fxcompress.graph.module import tied
from fxcompress.graph.origins import Kept
from fxcompress.graph.program import Program


@dataclass(frozen=True)
class PruningPlan:
    """Which indices of which group stay, and what that means for every stored tensor.

    Args:
        channels: by group name, the indices that stay, ascending; groups that stay whole are not listed.
        sizes: the original size of each listed group.
        kept: by tensor name and dimension, the positions that stay, in the user's names and coordinates,
            whatever was rewritten before the analysis. A tensor of several names is listed under each.
        protected: by group name, why a prunable group was left whole.
        relaxed: by group name, the width granularity where it is finer than the target's.
        before, after: exact costs.
        rewrites: the rewrites that the analysed program went through; `PruneChannels` applies them first
            where a program lacks them.
        copies: what is kept of each copy of a table that several layers read; copies have names of their
            own, for they may be cut differently, and are not listed in `kept`.
    """

    channels: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    protected: Mapping[str, str]
    relaxed: Mapping[str, int]
    before: Cost
    after: Cost
    rewrites: tuple[str, ...] = ()
    copies: Kept = field(default_factory=dict)

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
            found[group.axis] = np.asarray(_choice(group, stay), dtype=np.int64)
        return found

    def priced(self, analysis: Analysis) -> PruningPlan:
        """The plan with the costs that it has on an analysis of its program, whatever a file says."""
        widths = {axis: len(stay) for axis, stay in self.indices(analysis).items()}
        return replace(self, before=analysis.price.at({}), after=analysis.price.at(widths))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {
            "channels": {name: list(stay) for name, stay in self.channels.items()},
            "sizes": dict(self.sizes),
            "kept": _plain(self.kept),
            "protected": dict(self.protected),
            "relaxed": dict(self.relaxed),
            "before": vars(self.before),
            "after": vars(self.after),
            "rewrites": list(self.rewrites),
            "copies": _plain(self.copies),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises InputError for other data."""
        try:
            return cls(
                channels={name: tuple(stay) for name, stay in data["channels"].items()},
                sizes={name: int(data["sizes"][name]) for name in data["channels"]},
                kept=_read(data["kept"]),
                protected=dict(data["protected"]),
                relaxed=dict(data["relaxed"]),
                before=Cost(**data["before"]),
                after=Cost(**data["after"]),
                rewrites=_texts(data.get("rewrites", ())),
                copies=_read(data.get("copies", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is not a pruning plan: {type(error).__name__}: {error}",
                hint="pass what `PruningPlan.to_dict` returned",
            ) from error

    def with_channels(self, analysis: Analysis, channels: Mapping[str, Iterable[int] | None]) -> PruningPlan:
        """The plan with other choices for these groups; None leaves a group whole.

        Args:
            analysis: of the program that the plan was made for.
            channels: by group name, the indices that stay.
        """
        merged = dict(self.channels)
        for name, stay in channels.items():
            group = analysis.group(name)
            merged.pop(group.name, None)
            if stay is not None:
                merged[group.name] = _choice(group, stay)
        protected = {name: reason for name, reason in self.protected.items() if name not in merged}
        relaxed = {
            name: step for name, step in self.relaxed.items() if merged.get(name) == self.channels.get(name)
        }
        return make_plan(analysis, merged, protected, relaxed)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; raises InputError where the path cannot be written."""
        write_atomically(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode("utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The plan that `save` wrote, or that of a `plan.json` of a result.

        Raises:
            InputError: the file is missing, is no JSON, or holds no pruning plan.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror or error}", hint="check the path"
            ) from error
        except ValueError as error:
            raise InputError(
                f"{path.name} is not JSON: {error}", hint="write one with plan.save(path)"
            ) from error
        if isinstance(data, dict) and "pruning" in data:
            data = data["pruning"]
            if data is None:
                raise InputError(
                    f"{path.name} prunes nothing", hint="it is of a model that was handed out unpruned"
                )
        if not isinstance(data, dict):
            raise InputError(f"{path.name} is not a pruning plan", hint="write one with plan.save(path)")
        try:
            return cls.from_dict(data)
        except InputError as error:
            error.note(f"while reading {path.name}")
            raise

    def __str__(self) -> str:
        lines = [
            f"{self.before.macs / 1e6:.1f} -> {self.after.macs / 1e6:.1f} MMACs, {self.before.params} -> "
            f"{self.after.params} parameters"
        ]
        for name, stay in self.channels.items():
            note = f"  (multiple of {self.relaxed[name]})" if name in self.relaxed else ""
            lines.append(f"  {name}: {self.sizes[name]} -> {len(stay)}{note}")
        lines.extend(f"  {name}: whole, {reason}" for name, reason in self.protected.items())
        lines.extend(f"  made after {rewrite}" for rewrite in self.rewrites)
        return "\n".join(lines)


def _plain(kept: Kept) -> dict[str, dict[str, list[int]]]:
    return {name: {str(dim): list(stay) for dim, stay in dims.items()} for name, dims in kept.items()}


def _read(data: Mapping[str, Mapping[str, Iterable[int]]]) -> dict[str, dict[int, tuple[int, ...]]]:
    return {
        name: {int(dim): tuple(int(place) for place in stay) for dim, stay in dims.items()}
        for name, dims in data.items()
    }


def _texts(data: Iterable[str]) -> tuple[str, ...]:
    """A list of texts; one text is not read letter by letter."""
    listed = () if isinstance(data, str) else tuple(data)
    if isinstance(data, str) or not all(isinstance(item, str) for item in listed):
        raise TypeError(f"rewrites are a list of names, not {data!r}")
    return listed


def make_plan(
    analysis: Analysis,
    channels: Mapping[str, Iterable[int]],
    protected: Mapping[str, str] | None = None,
    relaxed: Mapping[str, int] | None = None,
) -> PruningPlan:
    """A plan from explicit choices: by group name, the indices that stay."""
    groups = {name: analysis.group(name) for name in channels}
    chosen = {name: _choice(groups[name], stay) for name, stay in channels.items()}
    indices = {groups[name].axis: np.asarray(stay, dtype=np.int64) for name, stay in chosen.items()}
    of_user, of_copies = stated(analysis.program, _kept(analysis, indices))
    return PruningPlan(
        channels={groups[name].name: stay for name, stay in chosen.items()},
        sizes={group.name: group.size for group in groups.values()},
        kept=of_user,
        protected=dict(protected or {}),
        relaxed=dict(relaxed or {}),
        before=analysis.price.at({}),
        after=analysis.price.at({axis: len(stay) for axis, stay in indices.items()}),
        rewrites=analysis.program.origins.rewrites,
        copies=of_copies,
    )


def stated(program: Program, kept: Kept) -> tuple[Kept, Kept]:
    """What is kept of a program's tensors, in the user's names and coordinates, and under those of copies."""
    names = {alias: every for every in tied(program.module).values() for alias in every}
    everywhere = {alias: dims for name, dims in kept.items() for alias in names[name]}
    of_user, of_copies = program.origins.stated(everywhere)
    return dict(sorted(of_user.items())), dict(sorted(of_copies.items()))


def _choice(group: Group, stay: Iterable[int]) -> tuple[int, ...]:
    """The indices that stay of a group, as plain integers; raises InputError for what is no choice."""
    listed: Any = stay
    try:
        listed = list(stay)
        chosen = tuple(operator.index(place) for place in listed)
    except TypeError:
        chosen = ()
    if not chosen or sorted(set(chosen)) != list(chosen) or not 0 <= chosen[0] <= chosen[-1] < group.size:
        shown = listed[:8] if isinstance(listed, list) else listed
        raise InputError(
            f"group {group.name!r} has {group.size} indices; {shown} is not an ascending choice of them",
            hint="list at least one index, each once, in ascending order",
        )
    return chosen


def _kept(analysis: Analysis, indices: Mapping[Axis, Indices]) -> dict[str, dict[int, tuple[int, ...]]]:
    result: dict[str, dict[int, tuple[int, ...]]] = {}
    for group in analysis.groups:
        for member in group.members if group.axis in indices else ():
            stay = kept(member.expression, indices)
            result.setdefault(member.tensor, {})[member.dim] = tuple(int(place) for place in stay)
    return {name: dict(sorted(dims.items())) for name, dims in sorted(result.items())}

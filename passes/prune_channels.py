"""Remove the channels a plan names: tensors shrink, and every constant that counted them follows."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node

from fxcompress.analysis.groups import analyse
from fxcompress.axes.expression import Axis
from fxcompress.axes.positions import Indices, kept
from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.ops.dimensions.space import Space
from fxcompress.ops.resize import Change, Resizing, Scaled, resize
from fxcompress.passes.contract import Outcome
from fxcompress.passes.loosening import loosened
from fxcompress.plan.pruning_plan import PruningPlan, stated


@dataclass(frozen=True)
class PruneChannels:
    """weight[64, 32] => weight[48, 24], reshape constants and group counts alike."""

    plan: PruningPlan
    name: ClassVar[str] = "prune-channels"

    def run(self, program: Program) -> Outcome:
        """Apply the plan, after the rewrites that it was made after where the program lacks them.

        Raises:
            InputError: the plan was made for another program.
        """
        if not self.plan.channels:
            return Outcome(program, ())
        result = loosened(program, self.plan.rewrites).copy()
        analysis = analyse(result)
        indices = self.plan.indices(analysis)
        changed = _remove(result, analysis.space, indices)
        if stated(result, changed) != (self.plan.kept, self.plan.copies):
            raise InputError(
                "the plan's parameter positions (`kept`) do not follow from its groups (`channels`) on this "
                "program",
                hint="to change the channels of a plan use plan.with_channels(analysis, {group: indices}), "
                "which writes `kept` anew; an unchanged plan fits the program that it was made for",
            )
        result.origins = result.origins.after(changed)
        edit.tidy(result)
        edit.reinfer(result)
        lines = [
            f"{name}: {self.plan.sizes[name]} -> {len(stay)}" for name, stay in self.plan.channels.items()
        ]
        return Outcome(result, tuple(lines))


def _remove(
    program: Program, space: Space, indices: Mapping[Axis, Indices]
) -> dict[str, dict[int, tuple[int, ...]]]:
    """Shrink tensors and constants in place; returns what was kept, by tensor and dimension."""
    resizing = Resizing(space, {axis: len(stay) for axis, stay in indices.items()})
    changes = [
        (node, change) for node in program.graph.nodes if (change := resize(resizing, node)) is not None
    ]
    changed: dict[str, dict[int, tuple[int, ...]]] = {}
    for node in walk.tensor_nodes(program):
        dims = _shrunk_dims(space, node, indices)
        if dims:
            tensor = walk.tensor(program, node)
            for dim, stay in dims.items():
                tensor = tensor.detach().index_select(dim, torch.from_numpy(stay))
            edit.set_tensor(program, str(node.target), tensor.contiguous())
            changed[str(node.target)] = {
                dim: tuple(int(place) for place in stay) for dim, stay in dims.items()
            }
    for node, change in changes:
        _apply(node, change)
    return dict(sorted(changed.items()))


def _shrunk_dims(space: Space, node: Node, indices: Mapping[Axis, Indices]) -> dict[int, Indices]:
    found = {place: kept(dim, indices) for place, dim in enumerate(space.of(node))}
    return {place: stay for place, stay in found.items() if len(stay) < space.of(node)[place].size}


def _apply(node: Node, change: Change) -> None:
    """Write new arguments; rescaled symbolic sizes become two small nodes before this one."""
    values = {name: _materialise(node, value) for name, value in change.arguments.items()}
    if change.target is not None:
        edit.set_target(node, change.target)
        node.args, node.kwargs = tuple(values.values()), {}
        return
    for name, value in values.items():
        edit.set_argument(node, name, value)


def _materialise(node: Node, value: Any) -> Any:
    if isinstance(value, list):
        return [_materialise(node, item) for item in value]
    if isinstance(value, Scaled):
        scaled = edit.call_before(node, operator.mul, (value.value, value.new))
        return edit.call_before(node, operator.floordiv, (scaled, value.old))
    return value

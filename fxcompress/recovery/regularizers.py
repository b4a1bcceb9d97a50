"""Penalties that prepare a model for pruning: added to the loss, they drive whole channels towards zero.

    penalty = group_lasso(analyse(program))
    loss = task_loss + 1e-4 * penalty(module)

A penalty is made once, from the analysis of a program, and evaluated on whatever module has parameters of
those names and shapes: the program's, or the user's own. All are differentiable and hold no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import Analysis, Group
from fxcompress.axes.positions import occurrences
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.module import tied
from fxcompress.ops.arguments import arguments
from fxcompress.plan.pruning_plan import PruningPlan

aten = torch.ops.aten
_NORMS = frozenset({aten.batch_norm.default, aten.instance_norm.default})


@dataclass(frozen=True)
class Slices:
    """Where an index of a group occurs in one dimension of a parameter.

    Args:
        names: all names of the parameter.
        shape: of the parameter.
        dim: the dimension.
        labels: for each position along it, the index that it belongs to, or -1.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dim: int
    labels: Tensor

    def of(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The parameter of a module; raises InputError where it is missing or has another shape."""
        found = next((parameters[name] for name in self.names if name in parameters), None)
        if found is None or tuple(found.shape) != self.shape:
            shape = "no such parameter" if found is None else f"shape {list(found.shape)}"
            raise InputError(
                f"the penalty was made for {self.names[0]} of shape {list(self.shape)}; the module has "
                f"{shape}",
                hint="make the penalty anew for a pruned program, and pass the module unwrapped",
            )
        return found

    def squares(self, parameters: Mapping[str, Tensor], size: int) -> Tensor:
        """The sum of squares of the weights that go with each index; shape `[size]`."""
        weight = self.of(parameters)
        sums = weight.square().movedim(self.dim, 0).flatten(1).sum(1) if weight.dim() > 1 else weight.square()
        inside = self.labels >= 0
        zeros = torch.zeros(size, dtype=weight.dtype, device=weight.device)
        labels = self.labels[inside].to(weight.device)
        return zeros.index_add(0, labels, sums[inside.to(weight.device)])


@dataclass(frozen=True)
class Coupled:
    """The parameters of one group.

    Args:
        name: the group's.
        size: its number of indices.
        weights: how many weights go with one index.
        slices: where they are.
    """

    name: str
    size: int
    weights: int
    slices: tuple[Slices, ...]

    def squares(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The sum of squares of all weights that go with each index; shape `[size]`."""
        return torch.stack([item.squares(parameters, self.size) for item in self.slices]).sum(0)


@dataclass(frozen=True)
class GroupLasso:
    """The sum over all groups and indices of `sqrt(n) |w|`, with the n weights w that go with the index.

    Yuan and Lin, "Model selection and estimation in regression with grouped variables" (2006), over the
    coupled weights of all layers (Fang et al., "DepGraph", 2023). The root of the size makes the pull on a
    single weight independent of how many there are: factors around 1e-4 to 1e-3 are like those of L1.
    An index whose weights are all zero stays there: its gradient is zero.
    """

    groups: tuple[Coupled, ...]

    def __call__(self, module: nn.Module) -> Tensor:
        """The penalty of a module's parameters, a scalar."""
        return self.penalty(module)

    def penalty(self, module: nn.Module) -> Tensor:
        """The penalty of a module's parameters, a scalar."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        return _total([sqrt(item.weights) * _norm(item.squares(parameters)).sum() for item in self.groups])


@dataclass(frozen=True)
class BatchNormScale:
    """The sum of `|weight|` of all batch and instance norms, over prunable channels.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017). Prune with
    `saliency="batch_norm"` afterwards.
    """

    scales: tuple[Slices, ...]

    def __call__(self, module: nn.Module) -> Tensor:
        """The penalty of a module's parameters, a scalar."""
        return self.penalty(module)

    def penalty(self, module: nn.Module) -> Tensor:
        """The penalty of a module's parameters, a scalar."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        found = [(item, item.of(parameters)) for item in self.scales]
        return _total([weight.abs()[(item.labels >= 0).to(weight.device)].sum() for item, weight in found])


@dataclass(frozen=True)
class RemovedWeights:
    """Half the sum of squares of the weights that a plan will remove.

    Multiplied by a factor that grows in training it empties the channels before they go: Wang et al.,
    "Neural Pruning via Growing Regularization" (2021).
    """

    groups: tuple[Coupled, ...]
    removed: Mapping[str, Tensor]

    def __call__(self, module: nn.Module) -> Tensor:
        """The penalty of a module's parameters, a scalar."""
        return self.penalty(module)

    def penalty(self, module: nn.Module) -> Tensor:
        """The penalty of a module's parameters, a scalar."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        return _total(
            [
                0.5 * squares[self.removed[item.name].to(squares.device)].sum()
                for item in self.groups
                for squares in (item.squares(parameters),)
            ]
        )


def group_lasso(analysis: Analysis) -> GroupLasso:
    """The group lasso over everything that could be removed; raises InputError where nothing could."""
    return GroupLasso(_coupled(analysis, analysis.groups))


def removed_weights(analysis: Analysis, plan: PruningPlan) -> RemovedWeights:
    """The weights that a plan removes, to be pulled to zero ever harder before they go."""
    groups = [analysis.group(name) for name in plan.channels]
    removed = {
        name: torch.tensor(sorted(set(range(plan.sizes[name])) - set(stay)), dtype=torch.int64)
        for name, stay in plan.channels.items()
    }
    return RemovedWeights(_coupled(analysis, groups), removed)


def batch_norm_scale(analysis: Analysis) -> BatchNormScale:
    """The scales of normalisations over prunable channels; raises InputError where there are none."""
    names = {
        str(weight.target)
        for node in analysis.program.graph.nodes
        if node.target in _NORMS and (weight := arguments(node).get("weight")) is not None
        if weight.op == "get_attr"
    }
    scales: dict[str, Slices] = {}
    for group in _coupled(analysis, analysis.groups):
        for item in group.slices:
            if names.intersection(item.names):
                known = scales.get(item.names[0], item)
                scales[item.names[0]] = replace(item, labels=torch.maximum(known.labels, item.labels))
    if not scales:
        raise InputError(
            "no batch norm with a scale works on prunable channels", hint="group_lasso needs none"
        )
    return BatchNormScale(tuple(scales.values()))


def _coupled(analysis: Analysis, groups: tuple[Group, ...] | list[Group]) -> tuple[Coupled, ...]:
    if not groups:
        raise InputError(
            "the model has no prunable group", hint="`fxcompress inspect` lists what is frozen, and why"
        )
    names = {name: tuple(every) for every in tied(analysis.program.module).values() for name in every}
    found = []
    for group in groups:
        slices = tuple(_slices(analysis, group, names))
        weights = sum(
            int((item.labels == 0).sum()) * (torch.Size(item.shape).numel() // item.shape[item.dim])
            for item in slices
        )
        if slices:
            found.append(Coupled(group.name, group.size, weights, slices))
    return tuple(found)


def _slices(analysis: Analysis, group: Group, names: Mapping[str, tuple[str, ...]]) -> Iterator[Slices]:
    for member in group.members:
        tensor = walk.tensor(analysis.program, member.tensor)
        if isinstance(tensor, nn.Parameter):
            for labels in occurrences(member.expression, group.axis):
                yield Slices(
                    names[member.tensor], tuple(tensor.shape), member.dim, torch.from_numpy(labels.copy())
                )


def _norm(squares: Tensor) -> Tensor:
    """The root, with gradient zero where the square is zero."""
    alive = squares > 0
    return torch.where(alive, torch.where(alive, squares, 1.0).sqrt(), 0.0)


def _total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum()

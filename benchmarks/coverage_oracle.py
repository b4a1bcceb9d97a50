"""The oracle for a tool that does not say what it removed: is its result the original without that?

Ours states a plan, and is judged by it (`fxcompress.proof.masked`); step 1 below is the same comparison for
indices that were found out. What a tool removed is read from its result alone. The original's tensors hold
random float64 values, all different, so that each value of a pruned tensor says where it came from: a pruned
tensor is the original at some positions of each dimension, or it is no slice at all (then the answer is no).
The original then runs in float64 without these positions:

1. What can be stated as indices of our channel groups is switched off where it is consumed, and every
   normalisation over it is computed on the positions that stay (`fxcompress.proof.masked`).
2. The rest, such as a part of each attention head, is zeroed in every parameter. That is the same wherever it
   is not normalised over. Where it is, zeroing would be unfair to the tool: a difference then counts as
   "unclear" and not as "no".

The pruned module must give the same outputs to 1e-9 relative, and the same differences between the outputs
for two inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.axes.expression import leaves
from fxcompress.axes.positions import occurrences
from fxcompress.errors import CompressError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from fxcompress.proof.comparison import equivalence
from fxcompress.proof.masked import MaskedExecutor

Kept = dict[str, dict[int, tuple[int, ...]]]
"""By tensor name and dimension, the positions that stay; whole dimensions are not listed."""


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Floating parameters and buffers under every name they have."""
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def told_apart(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with every value of every parameter and statistic its own; in place."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    done: set[int] = set()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and id(tensor) not in done:
                done.add(id(tensor))
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                finite = tensor.isfinite()
                tensor.copy_(torch.where(finite, tensor * (1 + 1e-6 * noise) + 1e-9 * noise, tensor))
    return model


def removed(original: nn.Module, pruned: nn.Module) -> Kept | str:
    """What of the original's tensors is left; a sentence where some tensor is no slice of its original."""
    before, after = tensors(original), tensors(pruned)
    kept: Kept = {}
    for name, tensor in after.items():
        if name not in before:
            return f"{name} is new"
        if tensor.shape == before[name].shape:
            continue
        dims = _positions(before[name], tensor)
        if dims is None:
            return f"{name} is no slice of the original"
        kept[name] = dims
    return kept


def _positions(whole: Tensor, part: Tensor) -> dict[int, tuple[int, ...]] | None:
    if whole.dim() != part.dim() or not part.numel():
        return None
    values, order = whole.flatten().sort()
    places = torch.searchsorted(values, part.flatten()).clamp(max=values.numel() - 1)
    source = order[places]
    found: dict[int, tuple[int, ...]] = {}
    coordinates = np.unravel_index(source.numpy(), tuple(whole.shape))
    for dim, coordinate in enumerate(coordinates):
        lines = np.moveaxis(np.asarray(coordinate).reshape(tuple(part.shape)), dim, 0)
        found[dim] = tuple(int(line.flat[0]) for line in lines)
    index = np.ix_(*found.values())
    if not torch.equal(whole[tuple(torch.from_numpy(axis) for axis in index)], part):
        return None
    return {dim: stay for dim, stay in found.items() if len(stay) < whole.shape[dim]}


def verdict(program: Program, pruned: Program, kept: Kept) -> tuple[str, str]:
    """Return "yes", "no" or "unclear", and why.

    Args:
        program: the original, in float64.
        pruned: what a tool made of it, in float64.
        kept: what `removed` read.
    """
    analysis = analyse(program)
    plan = make_plan(analysis, _channels(analysis, kept))
    rest = _beside(plan, analysis, kept)
    try:
        equivalence(MaskedExecutor(zeroed(program, rest), plan), pruned, 0)
    except CompressError as error:
        return ("unclear" if _normalised(analysis, rest) else "no"), error.message
    return "yes", ""


def _channels(analysis: Analysis, kept: Kept) -> dict[str, tuple[int, ...]]:
    """By group, the indices that stay somewhere; groups that lose none, or all, are not listed."""
    found: dict[str, tuple[int, ...]] = {}
    for group in analysis.groups:
        left: set[int] = set()
        for member in group.members:
            stay = kept.get(member.tensor, {}).get(member.dim)
            for labels in occurrences(member.expression, group.axis):
                left.update((labels if stay is None else labels[list(stay)]).tolist())
        left.discard(-1)
        if 0 < len(left) < group.size:
            found[group.name] = tuple(sorted(left))
    return found


def _beside(plan: PruningPlan, analysis: Analysis, kept: Kept) -> Kept:
    """What was removed of parameters and is not in the plan."""
    found: Kept = {}
    for name, _ in _parameters(analysis.program):
        for dim, stay in kept.get(name, {}).items():
            if tuple(plan.kept.get(name, {}).get(dim, ())) != stay:
                found.setdefault(name, {})[dim] = stay
    return found


def _normalised(analysis: Analysis, rest: Kept) -> bool:
    """Whether a normalisation averages over something of which positions are gone."""
    return any(
        axis.statistics
        for node in walk.tensor_nodes(analysis.program)
        for dim in rest.get(str(node.target), {})
        for axis in leaves(analysis.space.of(node)[dim])
    )


def _parameters(program: Program) -> list[tuple[str, Tensor]]:
    return list(program.module.named_parameters(remove_duplicate=False))


def zeroed(program: Program, kept: Kept) -> Program:
    """The program with every removed slice of these parameters set to zero."""
    result = program.copy()
    for name, tensor in _parameters(program):
        if name not in kept:
            continue
        masked = tensor.detach().clone()
        for dim, stay in kept[name].items():
            gone = np.setdiff1d(np.arange(masked.shape[dim]), np.asarray(stay))
            masked.index_fill_(dim, torch.from_numpy(gone), 0)
        edit.set_tensor(result, name, masked)
    return result

"""Choosing masks: which tensors hold weights that are summed over, and which of those weights go."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.consumption import consumed
from fxcompress.plan.sparsity import Sparsify, SparsityPlan

_MATRIX = 2


@dataclass(frozen=True)
class Weight:
    """A stored tensor that operators contract, and the dimension along which they do."""

    name: str
    tensor: torch.Tensor
    dim: int


def plan_sparsity(program: Program, options: Sparsify, *, within: SparsityPlan | None = None) -> SparsityPlan:
    """Choose which weights are zeroed.

    Args:
        program: whose weights they are.
        options: how many, and by which rules.
        within: masks of an earlier round: what they zero stays zero and counts.

    Raises:
        InputError: a pattern of names matches none, nothing is left to sparsify, a weight that is not finite.
    """
    weights, declined = _chosen(program, options)
    if not weights:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(declined.items())[:3])
        raise InputError("no weight of the model can be sparsified" + (f" ({why})" if why else ""))
    scores = _scores(weights, options, {} if within is None else within.masks)
    if options.counts is not None:
        kept, group = options.counts
        masks = {item.name: _n_of_m(scores[item.name], item.dim, kept, group) for item in weights}
    elif options.scope == "local":
        masks = {name: _largest(score, options.share) for name, score in scores.items()}
    else:
        flat = _largest(torch.cat([score.flatten() for score in scores.values()]), options.share)
        parts = flat.split([score.numel() for score in scores.values()])
        masks = {
            name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)
        }
    total = sum(walk.tensor(program, node).numel() for node in walk.parameter_nodes(program))
    return SparsityPlan(masks, declined, total)


def _chosen(program: Program, options: Sparsify) -> tuple[list[Weight], dict[str, str]]:
    """The weights to sparsify, and by name why others that were asked for stay dense."""
    weights: list[Weight] = []
    declined: dict[str, str] = {}
    asked = _named(program, options.layers, "layers") - _named(program, options.protect, "protect")
    for node in walk.parameter_nodes(program):
        name = str(node.target)
        tensor = walk.tensor(program, node)
        if name not in asked or tensor.dim() < _MATRIX:
            continue
        dims = {
            operand.dim % tensor.dim()
            for reader in node.users
            for operand in consumed(reader)
            if operand.node is node
        }
        others = [user.name for user in node.users if all(item.node is not node for item in consumed(user))]
        if others:
            declined[name] = f"read by {others[0]}, which sums over none of it"
        elif len(dims) != 1:
            declined[name] = "its readers sum over different dimensions"
        elif options.counts is not None and tensor.shape[min(dims)] % options.counts[1]:
            declined[name] = f"{tensor.shape[min(dims)]} inputs are no multiple of {options.counts[1]}"
        else:
            weights.append(Weight(name, tensor.detach(), min(dims)))
    return weights, declined


def _named(program: Program, patterns: tuple[str, ...], option: str) -> set[str]:
    """The stored names of the parameters that the patterns match under any of their names."""
    found: set[str] = set()
    names = {str(node.target) for node in walk.parameter_nodes(program)}
    for pattern in patterns:
        matched = {name for name in names if fnmatch.filter(walk.aliases(program, name), pattern)}
        if not matched:
            raise InputError(
                f"{option}: the pattern {pattern!r} matches no parameter",
                hint=f"parameters are named like {min(names, default='conv1.weight')!r}",
            )
        found |= matched
    return found


def _scores(
    weights: list[Weight], options: Sparsify, earlier: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """By name, what each weight is worth; what earlier masks zeroed is worth less than anything."""
    generator = torch.Generator().manual_seed(options.seed)
    scores: dict[str, torch.Tensor] = {}
    for item in weights:
        if not bool(item.tensor.isfinite().all()):
            raise InputError(
                f"the parameter {item.name} holds a NaN or an infinity: its weights have no order",
                hint="pass a model with finite weights",
            )
        if options.saliency == "random":
            score = torch.rand(item.tensor.shape, generator=generator)
        else:
            score = item.tensor.float().abs().cpu()
        if item.name in earlier:
            score = torch.where(earlier[item.name], score, -1.0)
        scores[item.name] = score
    return scores


def _largest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """True for all but the lowest `share` of the scores, rounded to the nearest count; ties go in order."""
    order = scores.flatten().argsort(stable=True)
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[order[: round(share * scores.numel())]] = False
    return mask.reshape(scores.shape)


def _n_of_m(scores: torch.Tensor, dim: int, kept: int, group: int) -> torch.Tensor:
    """True for the `kept` largest of every `group` consecutive scores along `dim`."""
    moved = scores.movedim(dim, -1)
    blocks = moved.reshape(-1, group)
    best = blocks.argsort(dim=-1, descending=True, stable=True)[:, :kept]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter(-1, best, value=True)
    return mask.reshape(moved.shape).movedim(-1, dim).contiguous()

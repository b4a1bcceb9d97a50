"""`embedding_bag`: rows of a table, one sum (or mean, or maximum) per bag of ids.

bags of one size (two-dimensional ids)   =>  embedding, reshape to [bags, size, C], a reduction
bags that begin at offsets               =>  embedding, the bag of every row, rows scattered to their bags
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxcompress.graph import walk
from fxcompress.ops.arguments import arguments

aten = torch.ops.aten

_SUM, _MEAN, _MAXIMUM = range(3)


def has_form(node: fx.Node) -> bool:
    """Whether an `embedding_bag` is read for its sums alone, and not for its bookkeeping."""
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def bags(node: fx.Node, given: Mapping[str, Any]) -> tuple[Tensor]:
    """The first result of an `embedding_bag`, from its arguments by name."""
    weight, ids, mode = given["weight"], given["indices"], given["mode"]
    rows = F.embedding(ids, weight)
    if given["per_sample_weights"] is not None:
        rows = rows * given["per_sample_weights"].unsqueeze(-1)
    skipped, padding = None, given.get("padding_idx")
    # A negative number counts from the end in the public operator, and means none in the others.
    if padding is not None and (padding >= 0 or node.target is aten.embedding_bag.padding_idx):
        skipped = (ids == padding % weight.shape[0]).unsqueeze(-1)
    size = _common_size(node)
    if size is not None:
        return (_even(rows, skipped, mode, size),)
    offsets = given["offsets"][:-1] if given["include_last_offset"] else given["offsets"]
    return (_ragged(rows, skipped, mode, offsets),)


def _common_size(node: fx.Node) -> int | None:
    """The size of all bags when the offsets are counted up in steps of it, as for two-dimensional ids."""
    bound = arguments(node)
    offsets, flat = bound["offsets"], bound["indices"]
    if offsets.target is not aten.arange.start_step or bound["include_last_offset"]:
        return None
    counted = arguments(offsets)
    step = counted.get("step", 1)
    if counted["start"] != 0 or not isinstance(step, int):
        return None
    return step if _fills(counted["end"], flat, step) else None


def _fills(total: Any, flat: fx.Node, step: int) -> bool:
    """Whether `total` is the number of ids, and bags of `step` leave none over."""
    if not isinstance(total, fx.Node):
        return bool(walk.value(flat).shape[0] == total and total % step == 0)
    if total.target is not aten.sym_numel.default:
        return False
    source = total.args[0]
    if step == 1 and source is flat:
        return True
    laid_out = flat.target in (aten.reshape.default, aten.view.default) and source is flat.args[0]
    sizes = walk.value(source).shape if laid_out and isinstance(source, fx.Node) else ()
    return len(sizes) == 2 and sizes[1] == step


def _even(rows: Tensor, skipped: Tensor | None, mode: int, size: int) -> Tensor:
    """rows[B * size, C] => y[B, C]"""
    there = None if skipped is None else (~skipped).reshape(-1, size, 1)
    rows = rows.reshape(-1, size, rows.shape[-1])
    if mode == _MAXIMUM:
        if there is None:
            return rows.amax(1)
        return _or_zero(rows.masked_fill(~there, -torch.inf).amax(1))
    if there is None:
        return rows.mean(1) if mode == _MEAN else rows.sum(1)
    total = rows.masked_fill(~there, 0).sum(1)
    return total / there.to(rows.dtype).sum(1).clamp_min(1) if mode == _MEAN else total


def _ragged(rows: Tensor, skipped: Tensor | None, mode: int, offsets: Tensor) -> Tensor:
    """rows[N, C], offsets[B] => y[B, C]; a bag without rows is zero."""
    bag = _bag_of_rows(rows, offsets)
    empty = rows.new_zeros(offsets.shape[0], rows.shape[1])
    if mode == _MAXIMUM:
        rows = rows if skipped is None else rows.masked_fill(skipped, -torch.inf)
        most = (empty - torch.inf).scatter_reduce(0, bag.expand_as(rows), rows, "amax")
        return _or_zero(most)
    rows = rows if skipped is None else rows.masked_fill(skipped, 0)
    total = empty.scatter_add(0, bag.expand_as(rows), rows)
    if mode == _SUM:
        return total
    ones = torch.ones_like(rows[:, :1]) if skipped is None else (~skipped).to(rows.dtype)
    return total / empty[:, :1].scatter_add(0, bag, ones).clamp_min(1)


def _bag_of_rows(rows: Tensor, offsets: Tensor) -> Tensor:
    """The number of every row's bag, `[N, 1]`: how many bags have begun, less one."""
    begun = offsets.new_zeros(rows.shape[0] + 1).scatter_add(0, offsets, torch.ones_like(offsets))
    return (begun.cumsum(0) - 1)[:-1].unsqueeze(-1)


def _or_zero(most: Tensor) -> Tensor:
    """Maxima over nothing are zero."""
    return most.masked_fill(most == -torch.inf, 0)

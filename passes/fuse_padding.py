"""Let the operator that reads an explicitly padded tensor pad by itself.

    conv(pad(x, [1, 1, 1, 1]), W)      =>   conv(x, W, padding=[1, 1])
    avg_pool(pad(x, [1, 1, 1, 1]), k)  =>   avg_pool(x, k, padding=[1, 1], count_include_pad)

Only zeros, the same number on both sides of each spatial axis (the operators have one number per axis), and
only where every reader of the padded tensor can take it. A pool with `ceil_mode` counts windows beyond its
padding otherwise; a max pool's own padding is minus infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import erase, set_arg, set_argument
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, consumers, source
from fxcompress.passes import affine_sites as sites
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.shape_facts import operand

aten = torch.ops.aten

PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})
POOLS: dict[object, int] = {
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
}
"""Average pools with the number of their spatial axes."""


@dataclass(frozen=True)
class FusePadding:
    """Fold explicit zero padding into the convolutions and average pools that read it."""

    name: ClassVar[str] = "fuse-padding"

    def run(self, program: Program) -> Outcome:
        """Return a program without the paddings that their readers took over."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for node in list(edited.graph.nodes):
            if node.op != "call_function" or node.target not in PADS:
                continue
            around = _around(node)
            reason = around if isinstance(around, str) else _readers_obstacle(node, around)
            if isinstance(around, str) or reason is not None:
                declined.append(Decline(node.name, str(reason), source(node)))
                continue
            readers = consumers(node)
            for reader in readers:
                _take(reader, sites.required(node), around)
            erase(node)
            changed.append(f"{node.name} into {', '.join(reader.name for reader in readers)}")
        return outcome(program, edited, changed, declined)


def _around(pad: Node) -> tuple[int, ...] | str:
    """The zeros on both sides of the last axes, first axis first; or why the padding has no such form."""
    if argument(pad, "mode", "constant") != "constant":
        return f"pads by {argument(pad, 'mode')}"
    if (argument(pad, "value", 0) or 0) != 0:
        return f"pads with {argument(pad, 'value')}, not zeros"
    amounts = argument(pad, "pad")
    if not all(isinstance(amount, int) for amount in amounts):
        return "pads by computed amounts"
    pairs = [tuple(amounts[place : place + 2]) for place in range(0, len(amounts), 2)]
    if any(begin != end for begin, end in pairs):
        return "pads one side more than the other"
    if any(begin < 0 for begin, _ in pairs):
        return "crops"
    return tuple(begin for begin, _ in reversed(pairs))


def _readers_obstacle(pad: Node, around: Sequence[int]) -> str | None:
    """Why some reader cannot pad by itself, or None."""
    if not pad.users:
        return "is not read"
    return next((reason for reader in pad.users if (reason := _obstacle(reader, pad, around))), None)


def _obstacle(reader: Node, pad: Node, around: Sequence[int]) -> str | None:
    if reader.target in POOLS:
        return _pool_obstacle(reader, around)
    if not sites.is_affine(reader) or sites.is_mirrored(reader) or operand(reader) is not pad:
        return f"{reader.name} has no padding of its own"
    if isinstance(argument(reader, "padding"), str):
        return f"{reader.name} pads by a word"
    own = sites.padding_of(reader) or ()
    if any(_beyond(around, len(own))):
        return "pads axes that are not spatial"
    return None if own else f"{reader.name} has no padding of its own"


def _pool_obstacle(pool: Node, around: Sequence[int]) -> str | None:
    rank = POOLS[pool.target]
    if any(_beyond(around, rank)):
        return "pads axes that are not spatial"
    if argument(pool, "ceil_mode", False):
        return f"{pool.name} has windows beyond its padding (ceil_mode)"
    own = sites.every_axis(argument(pool, "padding", 0), rank)
    if any(own) and not argument(pool, "count_include_pad", True):
        return f"{pool.name} does not count its own padding"
    kernel = sites.every_axis(argument(pool, "kernel_size"), rank)
    if any(2 * total > size for total, size in zip(_total(own, around), kernel, strict=True)):
        return f"{pool.name} may pad by at most half of its kernel"
    return None


def _beyond(around: Sequence[int], rank: int) -> Sequence[int]:
    return around[: max(len(around) - rank, 0)]


def _total(own: Sequence[int], around: Sequence[int]) -> list[int]:
    """The padding of an operator and the explicit one, together, per spatial axis."""
    spatial = [0] * (len(own) - len(around)) + list(around)
    return [one + other for one, other in zip(own, spatial[-len(own) :], strict=True)]


def _take(reader: Node, x: Node, around: Sequence[int]) -> None:
    """Let a reader of a padded tensor read the tensor and pad by itself."""
    set_arg(reader, 0, x)
    if reader.target in POOLS:
        own = sites.every_axis(argument(reader, "padding", 0), POOLS[reader.target])
        set_argument(reader, "padding", _total(own, around))
        set_argument(reader, "count_include_pad", True)
        return
    set_argument(reader, "padding", _total(sites.padding_of(reader) or (), around))

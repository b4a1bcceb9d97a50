"""Fold the normalisation of an input into the first convolution.

    conv(div(sub(x, mean), std), W, b)             =>   conv(x, W / std, b - W (mean / std))
    conv(div(sub(x, m), std), W, b, padding=p)     =>   conv(pad(x, p, value=m), W / std, b - ...)

The zeros that a convolution pads with are zeros *after* the normalisation. Before it they are the mean, so a
padded convolution is exact only where the input is padded with the mean explicitly, and an ONNX `Pad` takes
one value: the means must be one number. That replaces a chain of operators by one, and is left alone where
the chain has one operator only. With a mean per channel the site is declined; `FuseAffine` then still folds
the division.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import annotate, call_before, replace_uses, set_arg, set_argument
from fxcompress.graph.program import Program
from fxcompress.graph.walk import source
from fxcompress.numerics.folding import ChannelAffine
from fxcompress.passes import affine_sites as sites
from fxcompress.passes.channel_maps import ChannelMap, channel_map, compose
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.fuse_affine import behind, channels_of, fold_into_inputs, takes_shift

aten = torch.ops.aten

CASTS = frozenset({aten.to.dtype, aten._to_copy.default})
_SAME = 1e-12
"""Means count as one number within the rounding of float64."""


@dataclass(frozen=True)
class FuseInputNormalization:
    """Fold shifts and scales of a model's input into the convolution that reads it."""

    name: ClassVar[str] = "fuse-input-normalization"

    def run(self, program: Program) -> Outcome:
        """Return a program whose first convolutions read the input as it is."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for start in list(edited.graph.nodes):
            chain = _chain(edited, start) if _is_input(start) else []
            if not chain:
                continue
            site, pad = _decide(edited, chain)
            if isinstance(site, str):
                declined.append(Decline(chain[0].node.name, site, source(chain[0].node)))
                continue
            _fold(edited, chain, site, pad)
            changed.append(f"{', '.join(link.node.name for link in chain)} into {site.name}")
        return outcome(program, edited, changed, declined)


def _is_input(node: Node) -> bool:
    """Whether a node is an input of the model, or one that was cast."""
    while node.target in CASTS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.op == "placeholder"


def _chain(program: Program, start: Node) -> list[ChannelMap]:
    """The maps behind a node, each the only reader of the one before; empty where there is none."""
    for reader in start.users:
        chain: list[ChannelMap] = []
        link = channel_map(program, reader)
        while link is not None and link.node.target != aten.batch_norm.default:
            chain.append(link)
            users = list(link.node.users)
            link = channel_map(program, users[0]) if len(users) == 1 else None
        if chain:
            return chain
    return []


def _decide(program: Program, chain: list[ChannelMap]) -> tuple[Node | str, float | None]:
    """The convolution to fold into, or why there is none, and the value to pad its input with."""
    if len({link.axis for link in chain} - {None}) > 1:
        return "normalises along several axes", None
    affine = _composed(chain)
    only_scale = ChannelAffine(affine.scale, torch.zeros_like(affine.shift))
    axis = next((link.axis for link in chain if link.axis is not None), None)
    last = chain[-1]
    site = behind(program, ChannelMap(last.node, last.x, axis, only_scale))
    if isinstance(site, str) or not affine.shift.any() or takes_shift(site):
        return site, None
    if sites.is_mirrored(site) or not any(sites.padding_of(site) or ()):
        return f"{site.name} pads in a way that has no explicit form", None
    if len(chain) < 2:
        return f"{site.name} pads, and padding explicitly costs what the operator costs", None
    if not affine.scale.all():
        return "removes a channel", None
    means = -affine.shift / affine.scale
    if float((means - means[0]).abs().max()) > _SAME * float(means.abs().max()):
        return f"{site.name} pads with zeros, which stand for a mean of its own in each channel", None
    if next(iter(last.node.users)) is not site:
        return f"{site.name} pads, and the input is rearranged before it", None
    return site, float(means[0])


def _composed(chain: list[ChannelMap]) -> ChannelAffine:
    channels = max(link.affine.scale.numel() for link in chain)
    return reduce(compose, [link.vectors(channels) for link in chain])


def _fold(program: Program, chain: list[ChannelMap], site: Node, pad: float | None) -> None:
    affine = _composed(chain)
    channels = channels_of(program, site, outputs=False)
    fold_into_inputs(
        program, site, ChannelAffine(affine.scale.expand(channels), affine.shift.expand(channels))
    )
    start = chain[0].x
    replace_uses(chain[-1].node, start)
    if pad is None:
        return
    around = sites.padding_of(site) or ()
    amounts = [amount for each in reversed(around) for amount in (each, each)]
    padded = call_before(site, aten.pad.default, (start, amounts, "constant", pad), name="pad")
    annotate(padded)
    set_arg(site, 0, padded)
    set_argument(site, "padding", [0] * len(around))

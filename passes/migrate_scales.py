"""Move outlier channels of a normalised tensor into the weights that read it.

    linear(layer_norm(x, g, b), W)  =>  linear(layer_norm(x, g / s, b / s), W * s)

A transformer's activations have a few channels far wider than the others, and int8 gives a tensor one scale
for all. The norm before a block's linears already multiplies every channel by a stored number, so scales
cost nothing there. All readers must be linears (queries, keys and values share one set of scales); nothing
moves through a nonlinear function, past a residual sum or into an output. Scales are powers of two, so the
program computes the same bits, and they move only where the noise predicted for int8 falls.

Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models"
(2022); the strength that they fix at one half is chosen per tensor (`numerics.equalization`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.equalization import ChannelStatistics, best_scales
from fxcompress.passes.channel_readers import Reading, readings, scale_inputs
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.passes.equalize_channels import GAIN, NO_GAIN, readers_of, statistics_of

aten = torch.ops.aten

NORMS = frozenset({aten.layer_norm.default, aten.rms_norm.default})


@dataclass(frozen=True)
class MigrateScales:
    """Scale the channels that norms hand to linears where that makes int8 less noisy.

    Args:
        batches: calibration data that can be read more than once; labels are ignored.
    """

    batches: Iterable[Any] = field(repr=False)
    name: ClassVar[str] = "migrate-scales"

    def run(self, program: Program) -> Outcome:
        """Return the program with balanced norms; raises InputError for data that gives no numbers."""
        edited = program.copy()
        sites: dict[Node, list[Reading]] = {}
        declined: list[Decline] = []
        for node in edited.graph.nodes:
            if node.op != "call_function" or node.target not in NORMS:
                continue
            found = _obstacle(node) or readings(edited, node, walk.value(node).dim() - 1)
            if isinstance(found, str):
                declined.append(Decline(node.name, found, walk.source(node)))
            else:
                sites[node] = found
        seen = statistics_of(edited, self.batches, sites.values()) if sites else {}
        changed = []
        for node, found in sites.items():
            line = _migrate(edited, node, found, seen)
            if line is None:
                declined.append(Decline(node.name, NO_GAIN, walk.source(node)))
            else:
                changed.append(line)
        if not changed:
            return Outcome(program, (), tuple(declined))
        edit.reinfer(edited)
        return Outcome(edited, tuple(changed), tuple(declined))


def _obstacle(norm: Node) -> str | None:
    """Why a norm's own scale cannot take the factors."""
    if len(walk.argument(norm, "normalized_shape")) != 1:
        return "it normalises over several axes"
    for name in ("weight", "bias"):
        stored = walk.argument(norm, name)
        if stored is None:
            if name == "weight":
                return "it has no weight of its own"
            continue
        if stored.op != "get_attr" or len(stored.users) > 1:
            return f"its {name} is computed, or read by others"
    return None


def _migrate(
    program: Program, norm: Node, found: list[Reading], seen: dict[Node, ChannelStatistics]
) -> str | None:
    """Move the scales of one norm in place; what it gains, None where it stays."""
    if any(seen[part].count == 0 for reading in found for part in (reading.source, reading.layer)):
        return None
    scales, before, after = best_scales(readers_of(program, found, seen))
    if not after < GAIN * before:
        return None
    for name in ("weight", "bias"):
        stored = walk.argument(norm, name)
        if stored is not None:
            values: Tensor = walk.tensor(program, stored).detach()
            edit.set_tensor(program, str(stored.target), (values.double() / scales).to(values.dtype))
    for reading in found:
        scale_inputs(program, reading.layer, scales)
    names = ", ".join(reading.layer.name for reading in found)
    spread = float(scales.max() / scales.min())
    return f"{norm.name} with {names}: scales {spread:.3g} apart, noise {before:.2g} to {after:.2g}"

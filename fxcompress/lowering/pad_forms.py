"""Padding of integers as the padding of the convolution that reads them.

    Conv(DequantizeLinear(Pad(q, [0, 0, t, l, 0, 0, b, r], zero_point), s, zero_point), W)
        =>  Conv<pads=[t, l, b, r]>(DequantizeLinear(q, s, zero_point), W)

A convolution of the program pads both sides of an axis alike, an ONNX `Conv` need not: what stays an explicit
padding in the program (one side only, before a step of two) is none in the file. In float the exporter does
this by itself; between Q and DQ nobody does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fxcompress.lowering.match import constant, integers, maker, only_read_by


def pad_in_convolutions(graph: Any) -> int:
    """Apply the rule; returns how many paddings went."""
    return sum(_fuse(graph, node) for node in list(graph.nodes) if node.op == "DequantizeLinear")


def _fuse(graph: Any, real: Any) -> bool:
    pad = maker(real.inputs[0], "Pad")
    readers = list(real.outputs[0].outputs)
    if pad is None or not only_read_by(graph, pad.outputs[0], [real]) or not _pads_with_zero(pad, real):
        return False
    amounts = _spatial(pad)
    if amounts is None or not readers or not only_read_by(graph, real.outputs[0], readers):
        return False
    if not all(_can_pad(reader, real, len(amounts)) for reader in readers):
        return False
    for reader in readers:
        own = reader.attrs.get("pads", [0] * len(amounts))
        reader.attrs["pads"] = [one + other for one, other in zip(own, amounts, strict=True)]
    real.inputs = [pad.inputs[0], *real.inputs[1:]]
    real.outputs[0].shape = pad.inputs[0].shape
    return True


def _pads_with_zero(pad: Any, real: Any) -> bool:
    """Whether what is padded with is the integer that means zero, for the whole tensor."""
    if pad.attrs.get("mode", "constant") != "constant" or len(pad.inputs) > 3:
        return False
    given = constant(pad.inputs[2]) if len(pad.inputs) == 3 else np.zeros(())
    zero = constant(real.inputs[2]) if len(real.inputs) == 3 else np.zeros(())
    return (
        given is not None
        and zero is not None
        and given.size == zero.size == 1
        and given.item() == zero.item()
    )


def _spatial(pad: Any) -> list[int] | None:
    """Begins and ends of the spatial axes; None where others are padded, or something is cut off."""
    amounts = integers(pad, 1)
    if amounts is None or min(amounts, default=-1) < 0:
        return None
    rank = len(amounts) // 2
    if any(amounts[place] for place in (0, 1, rank, rank + 1)):
        return None
    return [*amounts[2:rank], *amounts[rank + 2 :]]


def _can_pad(reader: Any, real: Any, sides: int) -> bool:
    """Whether a reader is a convolution of this tensor with a number for every side."""
    image = real.outputs[0]
    if reader.op != "Conv" or reader.inputs[0] is not image or any(one is image for one in reader.inputs[1:]):
        return False
    own = reader.attrs.get("pads", [0] * sides)
    return reader.attrs.get("auto_pad", "NOTSET") == "NOTSET" and len(own) == sides

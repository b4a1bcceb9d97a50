"""Float operators that a runtime would quantize by itself: a plan that says float means it.

ONNX Runtime quantizes the float weight of a convolution or Gemm that stands between a dequantize and a
quantize node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from fxcompress.graph import walk
from fxcompress.ops.quantization import activations, role
from fxcompress.plan.eligibility import KEEPS_SCALE, is_batched, is_contraction, operand


def guarded(
    floats: Sequence[fx.Node], quantized: Collection[fx.Node], integer_only: Collection[str]
) -> list[str]:
    """The convolutions and linears that read, perhaps through layout, what an integer kernel made.

    Args:
        floats: the operators that stay in float.
        quantized: the tensors that have a pair of their own.
        integer_only: the names of those whose float readers read the dequantized value.
    """
    found = []
    for node in floats:
        row = role(node)
        if row is None or not is_contraction(node):
            continue
        weight, source = operand(node, row.weight), activations(node, row)[0]
        if weight is None or weight.op != "get_attr" or walk.value(weight).dim() < 2 or is_batched(node, row):
            continue
        while source not in quantized and (before := role(source)) and before.kind in KEEPS_SCALE:
            source = activations(source, before)[0]
        if source.name in integer_only:
            found.append(node.name)
    return found

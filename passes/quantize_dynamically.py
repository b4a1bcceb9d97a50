"""Quantize what enters a matrix product at run time, and store its weight as int8.

    linear(x, weight, bias)  =>  scale, zero_point = choose_qparams(x)
                                 x_q = quantize(x, scale, zero_point)
                                 linear(dequantize(x_q, scale, zero_point), dequantize(weight_int8), bias)

One scale for a whole tensor, found anew in every call, so no calibration data is needed. All products that
read a tensor share its integers. What runs is `DynamicQuantizeLinear` and `MatMulInteger`, which ONNX Runtime
fuses to `DynamicQuantizeMatMul`. A convolution is never touched: older runtimes do not load `ConvInteger` of
uint8 and int8 (ort#12362), and in 1.31, which does, it takes four times as long as float (1.97 and 0.51 ms
for 64 channels at 28 x 28 on one core with VNNI).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import fx

from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.affine import SMALLEST_SCALE, channel_scales, quantize_channels
from fxcompress.ops.quantization import role
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.plan.stored_products import SMALLEST, StoredProduct, stored_products

integers = torch.ops.quantized_decomposed

NO_CONVOLUTION = (
    "a convolution with ranges found at run time (ConvInteger for uint8 and int8) is four times slower than "
    "float in onnxruntime 1.31, and older ones do not load it"
)


@dataclass(frozen=True)
class QuantizeDynamically:
    """Quantize all matrix products with a stored weight.

    Args:
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
        smallest: elements that a weight must have.
        limit: the largest magnitude of a stored weight; 64 where sums of products would saturate.
        tables: large lookup tables will have integers of their own (`QuantizeTables`), so that a product may
            share one.
    """

    name: ClassVar[str] = "quantize-dynamically"
    exclude: tuple[str, ...] = ()
    smallest: int = SMALLEST
    limit: int = 127
    tables: bool = False

    def run(self, program: Program) -> Outcome:
        """Return the program with run-time quantization at every product that can have it."""
        copy = program.copy()
        products, left = stored_products(
            copy, NO_CONVOLUTION, self.exclude, self.smallest, tables=self.tables
        )
        declined = tuple(Decline(item.node, item.reason, item.source) for item in left)
        if not products:
            return Outcome(program, (), declined)
        weights: dict[str, fx.Node] = {}
        inputs: dict[fx.Node, fx.Node] = {}
        for product in products:
            if product.source not in inputs:
                inputs[product.source] = _quantized_input(product.source)
            if product.parameter not in weights:
                weights[product.parameter] = _stored_weight(copy, product, self.limit)
        for product in products:
            row = role(product.node)
            assert row is not None and row.weight is not None
            edit.set_argument(product.node, row.activations[0], inputs[product.source])
            edit.set_argument(product.node, row.weight, weights[product.parameter])
        edit.tidy(copy)
        edit.reinfer(copy)
        changed = tuple(f"{product.node.name} reads {product.parameter} as int8" for product in products)
        return Outcome(copy, changed, declined)


def _quantized_input(source: fx.Node) -> fx.Node:
    """What the integers of a tensor stand for, right behind it."""
    name = source.name
    form = (0, 255, torch.uint8)
    found = edit.call_after(
        source,
        integers.choose_qparams.tensor,
        (source, 0, 255, SMALLEST_SCALE, torch.uint8),
        name=f"{name}_range",
    )
    scale = edit.call_after(found, operator.getitem, (found, 0), name=f"{name}_step")
    zero = edit.call_after(scale, operator.getitem, (found, 1), name=f"{name}_zero")
    whole = edit.call_after(
        zero, integers.quantize_per_tensor.tensor, (source, scale, zero, *form), name=f"{name}_q"
    )
    return edit.call_after(
        whole, integers.dequantize_per_tensor.tensor, (whole, scale, zero, *form), name=f"{name}_dq"
    )


def _stored_weight(program: Program, product: StoredProduct, limit: int) -> fx.Node:
    """Store a matrix as int8 with one scale per output; what it stands for, before its first reader."""
    values = walk.tensor(program, product.weight).detach()
    scales = channel_scales(values, product.axis, limit)
    name = product.parameter
    whole = edit.add_tensor(program, f"{name}_int8", quantize_channels(values, scales, product.axis, limit))
    scale = edit.add_tensor(program, f"{name}_scale", scales)
    zeros = edit.add_tensor(program, f"{name}_zero_point", torch.zeros(len(scales), dtype=torch.int64))
    args = (whole, scale, zeros, product.axis, -128, 127, torch.int8)
    return edit.call_before(
        min(product.weight.users), integers.dequantize_per_channel.default, args, name=f"{whole.name}_dq"
    )

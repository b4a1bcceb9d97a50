"""The forms in which ONNX Runtime has kernels for run-time quantization and for weights in blocks.

    linear(dequantize(quantize(x, *choose_qparams(x))), dequantize_per_channel(w), b)
        =>  x_q, scale, zero = DynamicQuantizeLinear(x)
            Cast(MatMulInteger(x_q, w', zero)) * (scale * w_scales) + b

    anything else that reads it                        =>  reads (Cast(x_q) - Cast(zero)) * scale

    linear(x, dequantize_per_channel_group(w), b)      =>  MatMulNBits(x, packed w, scales, b)
    linear(x rounded in blocks, dequantize_.._group)   =>  the same, which rounds by itself

The runtime fuses the first to `DynamicQuantizeMatMul`. This is done on the program before it is exported,
where a weight can still be turned and packed and every node keeps its name.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from fxcompress.errors import LoweringError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.lowering.runtime_operators import operators
from fxcompress.ops.quantization import Kind, role

aten = torch.ops.aten
integers = torch.ops.quantized_decomposed

FLOATS, INTEGERS = 1, 4
"""`accuracy_level` of MatMulNBits: activations as they are, or rounded to int8 in blocks."""

MATRIX = 2
"""Dimensions of a stored weight that products of integers read."""

_GROUPED = integers.dequantize_per_channel_group.default
_PER_CHANNEL = integers.dequantize_per_channel.default
_PER_TENSOR = integers.dequantize_per_tensor.default
_RANGE = integers.choose_qparams.tensor
_QUANTIZE = integers.quantize_per_tensor.tensor
_DEQUANTIZE = integers.dequantize_per_tensor.tensor


def runtime_forms(program: Program) -> Program:
    """The program in the runtime's forms; itself where there is nothing to do.

    Raises:
        LoweringError: a weight in blocks that something else than a product reads, or integers with a
            run-time scale that are not dequantized at once.
    """
    if not any(node.target in (_GROUPED, _RANGE) for node in program.graph.nodes):
        return program
    copy = program.copy()
    for node in list(copy.graph.nodes):
        if node.target is _GROUPED:
            _in_blocks(copy, node)
        elif node.target is _RANGE:
            _at_run_time(copy, node)
    edit.tidy(copy)
    edit.reinfer(copy)
    return copy


def _in_blocks(program: Program, real: fx.Node) -> None:
    """Let every product that reads a weight in blocks read its packed integers."""
    stored, scales, zeros, low, _, _, block, *_ = real.args
    if zeros is not None or any(user.target is not aten.linear.default for user in real.users):
        raise _unreadable(real, "a weight in blocks")
    assert isinstance(stored, fx.Node) and isinstance(scales, fx.Node)
    assert isinstance(low, int) and isinstance(block, int)
    bits = 1 + (-low - 1).bit_length()
    whole = walk.tensor(program, stored)
    packed = edit.add_tensor(program, f"{stored.target}_packed", pack(whole, block, bits))
    for product in list(real.users):
        source = product.args[0]
        assert isinstance(source, fx.Node)
        before = before_rounding(source)
        bias = walk.argument(product, "bias")
        accuracy = FLOATS if before is None else INTEGERS
        args = (before or source, packed, scales, bias, *whole.shape, bits, block, accuracy)
        edit.set_call(product, operators.matmul_nbits.default, args)


def pack(whole: Tensor, block: int, bits: int) -> Tensor:
    """Signed integers `[N, K]` as MatMulNBits stores them: uint8 `[N, blocks, block * bits / 8]`.

    The zero point is the middle of the range; of two 4-bit integers the first has the lower half of the byte.
    """
    shifted = (whole.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8).unflatten(1, (-1, block))
    if bits == 8:
        return shifted.contiguous()
    return (shifted[..., 0::2] | (shifted[..., 1::2] << 4)).contiguous()


def before_rounding(source: Any) -> fx.Node | None:
    """The tensor that the node `source` is, rounded in blocks; None where it is not."""
    chain = (
        aten.flatten.using_ints,
        integers.dequantize_per_token.default,
        integers.quantize_per_token.default,
        aten.unflatten.int,
    )
    node = source
    for target in chain:
        if not isinstance(node, fx.Node) or node.target is not target:
            return None
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None


def _at_run_time(program: Program, found: fx.Node) -> None:
    """Write one run-time quantization and the products that read it."""
    source = found.args[0]
    assert isinstance(source, fx.Node)
    for whole in [node for node in source.users if node.target is _QUANTIZE and _scale_of(node) is found]:
        both = edit.call_before(
            whole, operators.dynamic_quantize.default, (source,), name=f"{whole.name}_dynamic"
        )
        scale = edit.call_before(whole, operator.getitem, (both, 1))
        zero = edit.call_before(whole, operator.getitem, (both, 2))
        for real in list(whole.users):
            if real.target is not _DEQUANTIZE:
                raise _unreadable(real, "a tensor that is quantized at run time")
            for reader in list(real.users):
                _integer_product(program, reader, real, (whole, scale, zero))
            if real.users:
                _floats(real, whole, scale, zero)
        edit.set_call(whole, operator.getitem, (both, 0))


def _floats(real: fx.Node, whole: fx.Node, scale: fx.Node, zero: fx.Node) -> None:
    """What integers with a run-time scale stand for, in plain operators: runtimes fuse none of them."""
    number = edit.call_before(real, aten.to.dtype, (whole, torch.float32))
    origin = edit.call_before(real, aten.to.dtype, (zero, torch.float32))
    distance = edit.call_before(real, aten.sub.Tensor, (number, origin))
    edit.set_call(real, aten.mul.Tensor, (distance, scale))


def _scale_of(whole: fx.Node) -> fx.Node | None:
    scale = whole.args[1]
    origin = scale.args[0] if isinstance(scale, fx.Node) else None
    return origin if isinstance(origin, fx.Node) else None


def _integer_product(
    program: Program, product: fx.Node, real: fx.Node, quantized: tuple[fx.Node, fx.Node, fx.Node]
) -> None:
    """One product of quantized activations with a stored weight, in integers; others are left."""
    row = role(product)
    if row is None or row.kind is not Kind.LINEAR or row.weight is None:
        return
    steps = _steps(program, walk.argument(product, row.weight), row.axis)
    if steps is None or walk.argument(product, row.activations[0]) is not real:
        return
    whole, scale, zero = quantized
    stored = walk.argument(product, row.weight).args[0]
    matrix = _turned(program, stored) if row.axis == 0 else stored
    summed = edit.call_before(product, operators.matmul_integer.default, (whole, matrix, zero))
    floats = edit.call_before(product, aten.to.dtype, (summed, torch.float32))
    step = edit.call_before(product, aten.mul.Tensor, (scale, steps))
    bias = walk.argument(product, row.bias) if row.bias else None
    if bias is None:
        edit.set_call(product, aten.mul.Tensor, (floats, step))
        return
    scaled = edit.call_before(product, aten.mul.Tensor, (floats, step))
    edit.set_call(product, aten.add.Tensor, (scaled, bias))


def _steps(program: Program, weight: Any, axis: int) -> fx.Node | float | None:
    """The scales of a stored int8 weight, one for each output or one for all; None where it is no such."""
    if not isinstance(weight, fx.Node) or weight.target not in (_PER_CHANNEL, _PER_TENSOR):
        return None
    stored, steps, zero = weight.args[:3]
    if not isinstance(stored, fx.Node) or stored.op != "get_attr":
        return None
    if walk.dtype(stored) != torch.int8 or len(walk.shape(stored)) != MATRIX:
        return None
    if weight.target is _PER_TENSOR:
        return steps if isinstance(steps, float) and zero == 0 else None
    assert isinstance(steps, fx.Node) and isinstance(weight.args[3], int)
    centered = isinstance(zero, fx.Node) and not bool(walk.tensor(program, zero).any())
    return steps if centered and weight.args[3] % MATRIX == axis % MATRIX else None


def _turned(program: Program, stored: fx.Node) -> fx.Node:
    """The matrix `[K, N]` of a stored `[N, K]`, once."""
    name = f"{stored.target}_turned"
    known = next((node for node in walk.tensor_nodes(program) if node.target == name), None)
    return known or edit.add_tensor(program, name, walk.tensor(program, stored).mT.contiguous())


def _unreadable(node: fx.Node, what: str) -> LoweringError:
    return LoweringError(
        f"{what} can be written for the runtime where matrix products with stored weights read it, not here",
        node=node.format_node(),
        source=walk.source(node),
    )

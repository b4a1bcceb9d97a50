"""Store the weights of large matrix products in blocks of int4 or int8; activations stay in float.

    linear(x, weight, bias)  =>  linear(x, dequantize(weight_int4, scales), bias)

With `activations="int8"` the runtime may also round what enters the product, each block of a row to int8,
for speed; the program then says so:

    blocks = x.unflatten(-1, (K / block, block)), quantized and dequantized each with its own scale

What runs is `MatMulNBits` of ONNX Runtime, with `accuracy_level` 1 (float) or 4 (int8). Level 4 is several
times faster for short inputs and costs accuracy that nobody asked for (ort#29849), which is why it is written
into the program and measured like everything else.

With `unpack="load"` the weight is written out in plain operators on the stored integers,

    linear(x, float(weight_int8) * scales)

which the runtime computes once, when it loads the file: the speed and the memory are those of float, and only
the file is small.

With the moments of inputs, weights are rounded by GPTQ, without them to the nearest.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from fxcompress.analysis.input_moments import input_moments
from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.blocks import block_scales, bounds, quantize_blocks
from fxcompress.numerics.gptq import damping_for, gptq
from fxcompress.ops.quantization import role
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.plan.quantization_plan import Declined
from fxcompress.plan.stored_products import SMALLEST, StoredProduct, stored_products

aten = torch.ops.aten
integers = torch.ops.quantized_decomposed

BITS = (4, 8)
Rounded = tuple[Tensor, Tensor]
"""Integers and scales of a weight."""

ACTIVATIONS = ("float", "int8")
UNPACK = ("run", "load")
NO_BLOCKS = "only matrix products have kernels for weights in blocks"


@dataclass(frozen=True)
class QuantizeWeights:
    """Quantize the weights of matrix products in blocks.

    Args:
        bits: 4 or 8.
        block_size: weights that share a scale; the inner size must be a multiple.
        activations: `"float"`, or `"int8"`: rounded in blocks before each product.
        unpack: where integers become floats: inside every product that runs, or once, at load.
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
        smallest: elements that a weight must have.
        tables: large lookup tables will have integers of their own (`QuantizeTables`), so that a product may
            share one.
        calibration: batches of typical inputs for GPTQ; None rounds to the nearest.
        rounded: what `round` returned, if it was called before.

    Raises:
        InputError: another number of bits, block size or form of activations.
    """

    name: ClassVar[str] = "quantize-weights"
    bits: int = 4
    block_size: int = 32
    activations: str = "float"
    unpack: str = "run"
    exclude: tuple[str, ...] = ()
    smallest: int = SMALLEST
    tables: bool = False
    calibration: Iterable[Any] | None = field(default=None, repr=False, compare=False)
    rounded: Mapping[str, Rounded] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"bits is one of {BITS}, not {self.bits!r}")
        if self.activations not in ACTIVATIONS:
            raise InputError(f"activations is one of {', '.join(ACTIVATIONS)}, not {self.activations!r}")
        if self.unpack not in UNPACK or (self.unpack, self.activations) == ("load", "int8"):
            raise InputError(
                f"unpack is one of {', '.join(UNPACK)}, not {self.unpack!r}; int8 activations need 'run'"
            )
        size = self.block_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 16 or size & (size - 1):
            raise InputError(f"block_size is a power of two from 16 on, not {size!r}")

    def run(self, program: Program) -> Outcome:
        """Return the program with integers for weights.

        Raises:
            InputError: the calibration data does not fit the program or holds a NaN.
        """
        copy = program.copy()
        products, left = self._sites(copy)
        declined = tuple(Decline(item.node, item.reason, item.source) for item in left)
        if not products:
            return Outcome(program, (), declined)
        readers: dict[str, list[StoredProduct]] = {}
        for product in products:
            readers.setdefault(product.parameter, []).append(product)
        rounded = self.round(program) if self.rounded is None else self.rounded
        for parameter, same in readers.items():
            store = _store if self.unpack == "run" else _store_plain
            real = store(copy, same, *rounded[parameter], self.bits)
            for product in same:
                edit.set_call(product.node, aten.linear.default, (product.source, real, product.bias))
        if self.activations == "int8":
            _round_inputs(products, self.block_size)
        edit.tidy(copy)
        edit.reinfer(copy)
        how = "to the nearest" if self.calibration is None else "by GPTQ"
        changed = tuple(f"{name} stored as int{self.bits}, rounded {how}" for name in readers)
        return Outcome(copy, changed, declined)

    def round(self, program: Program) -> dict[str, Rounded]:
        """The integers `[N, K]` and scales `[N, blocks]` of every weight, which `run` stores.

        Raises:
            InputError: the calibration data does not fit the program or holds a NaN.
        """
        return {name: (whole, scales) for name, whole, scales in self._rounded(program)}

    def _sites(self, program: Program) -> tuple[list[StoredProduct], list[Declined]]:
        """The products that divide into blocks, and the others."""
        products, left = stored_products(program, NO_BLOCKS, self.exclude, self.smallest, tables=self.tables)
        fits = []
        for product in products:
            inner = walk.hint_shape(product.source)[-1]
            if inner % self.block_size == 0:
                fits.append(product)
                continue
            reason = f"its {inner} inputs are no multiple of the block size {self.block_size}"
            left = [*left, Declined(product.node.name, reason, walk.source(product.node))]
        return fits, left

    def _rounded(self, program: Program) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield every weight's name, integers and scales."""
        first: dict[str, StoredProduct] = {}
        for product in self._sites(program)[0]:
            first.setdefault(product.parameter, product)
        if self.calibration is None:
            for name, product in first.items():
                matrix = _matrix(program, product)
                scales = block_scales(matrix, self.block_size, self.bits)
                yield name, quantize_blocks(matrix, scales, self.bits), scales
            return
        sources = list(dict.fromkeys(product.source.name for product in first.values()))
        for source, moments, rows in input_moments(program, self.calibration, sources):
            damping = damping_for(len(moments), rows)
            for name, product in first.items():
                if product.source.name == source:
                    yield name, *gptq(_matrix(program, product), moments, self.block_size, self.bits, damping)


def _matrix(program: Program, product: StoredProduct) -> Tensor:
    """The weight as `[N, K]`."""
    values = walk.tensor(program, product.weight).detach()
    return values if product.rows_are_outputs else values.mT


def _store(
    program: Program, products: list[StoredProduct], whole: Tensor, scales: Tensor, bits: int
) -> fx.Node:
    """Store integers; what they stand for, as `[N, K]` (so that addmm becomes linear)."""
    name = f"{products[0].parameter}_int{bits}"
    low, high = bounds(bits)
    stored = edit.add_tensor(program, name, whole)
    scale = edit.add_tensor(program, f"{name}_scale", scales)
    block = whole.shape[1] // scales.shape[1]
    args = (stored, scale, None, low, high, torch.int8, block, torch.float32)
    return edit.call_before(
        min(products[0].weight.users),
        integers.dequantize_per_channel_group.default,
        args,
        name=f"{stored.name}_dq",
    )


def _store_plain(
    program: Program, products: list[StoredProduct], whole: Tensor, scales: Tensor, bits: int
) -> fx.Node:
    """The same in plain operators; two 4-bit integers are stored as `16 high + low`, both from 0 on."""
    name = f"{products[0].parameter}_int{bits}"
    first = min(products[0].weight.users)
    scale = edit.add_tensor(program, f"{name}_scale", scales.unsqueeze(2))
    shift = 2 ** (bits - 1)
    if bits == 8:
        value = edit.add_tensor(program, name, whole)
    else:
        halves = (whole + shift).to(torch.uint8).unflatten(1, (-1, 2))
        stored = edit.add_tensor(program, name, halves[..., 1] * 16 + halves[..., 0])
        high = edit.call_before(first, aten.div.Tensor_mode, (stored, 16), {"rounding_mode": "floor"})
        low = edit.call_before(first, aten.sub.Tensor, (stored, high), {"alpha": 16})
        both = edit.call_before(first, aten.stack.default, ([low, high], -1))
        value = edit.call_before(first, aten.flatten.using_ints, (both, 1))
    value = edit.call_before(first, aten.to.dtype, (value, torch.float32))
    if bits == 4:
        value = edit.call_before(first, aten.sub.Tensor, (value, float(shift)))
    blocks = edit.call_before(first, aten.unflatten.int, (value, 1, [scales.shape[1], -1]))
    scaled = edit.call_before(first, aten.mul.Tensor, (blocks, scale))
    name = f"{products[0].weight.name}_float"
    return edit.call_before(first, aten.flatten.using_ints, (scaled, 1), name=name)


def _round_inputs(products: list[StoredProduct], block: int) -> None:
    """Let the products read their inputs rounded in blocks; products of one tensor share the rounding."""
    rounded: dict[fx.Node, fx.Node] = {}
    for product in products:
        source = product.source
        if source not in rounded:
            rounded[source] = _rounded_input(source, block)
        row = role(product.node)
        assert row is not None
        edit.set_argument(product.node, row.activations[0], rounded[source])


def _rounded_input(source: fx.Node, block: int) -> fx.Node:
    name = source.name
    blocks = edit.call_after(source, aten.unflatten.int, (source, -1, [-1, block]), name=f"{name}_blocks")
    found = edit.call_after(
        blocks, integers.choose_qparams_per_token.default, (blocks, torch.int8), name=f"{name}_range"
    )
    scale = edit.call_after(found, operator.getitem, (found, 0), name=f"{name}_step")
    zero = edit.call_after(scale, operator.getitem, (found, 1), name=f"{name}_zero")
    form = (scale, zero, -127, 127, torch.int8)
    whole = edit.call_after(zero, integers.quantize_per_token.default, (blocks, *form), name=f"{name}_q")
    real = edit.call_after(
        whole, integers.dequantize_per_token.default, (whole, *form, torch.float32), name=f"{name}_dq"
    )
    return edit.call_after(real, aten.flatten.using_ints, (real, -2, -1), name=f"{name}_rounded")

"""Which kernels an operator becomes in float and in integers, at concrete sizes: what its two prices are
measured on.

Only operators with an integer kernel are listed (`fxcompress.ops.quantization`); all others take the same
time whatever their neighbours do. What the runtime fuses into one kernel is one kernel here: an activation
behind a convolution, a self-gated activation, the addition of a bias in a Gemm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.lowering.stem_forms import blocks_of
from fxcompress.ops.quantization import Kind, Role, activations, role
from fxcompress.runtime.kernel_models import Attribute, Kernel, Shape

aten = torch.ops.aten

_SIMPLE: Mapping[Kind, str] = {
    Kind.ADD: "Add",
    Kind.MULTIPLY: "Mul",
    Kind.SIGMOID: "Sigmoid",
    Kind.LEAKY: "LeakyRelu",
    Kind.GLOBAL_AVERAGE: "GlobalAveragePool",
}
_GATES: Mapping[Any, str] = {aten.silu.default: "Sigmoid", aten.hardswish.default: "HardSigmoid"}
_FUSED: Mapping[Any, str] = {
    aten.relu.default: "Relu",
    aten.relu6.default: "Clip",
    aten.hardtanh.default: "Clip",
    aten.clamp.default: "Clip",
    aten.clamp_min.default: "Clip",
    aten.hardswish.default: "HardSwish",
    aten.hardsigmoid.default: "HardSigmoid",
    aten.sigmoid.default: "Sigmoid",
}
"""Activations that a float convolution absorbs, as the ONNX operators they become."""


TURNS = ((0, 2, 3, 1), (0, 3, 1, 2))
"""Permutations that integer convolutions, whose channels are last, do away with."""


@dataclass(frozen=True)
class Both:
    """The kernels of one operator in float and in integers; None where it has none in integers."""

    floats: tuple[Kernel, ...] = ()
    integers: tuple[Kernel, ...] | None = None


class Sizes:
    """Shapes at a number of samples: symbolic sizes as in the example, but for the batch."""

    def __init__(self, program: Program, batch: int) -> None:
        self.batch = batch
        leading = [walk.shape(node)[:1] for node in walk.placeholders(program) if walk.is_tensor(node)]
        self.symbols = {
            size.node.expr
            for sizes in leading
            for size in sizes
            if isinstance(size, torch.SymInt) and walk.varies(size)
        }

    def of(self, node: fx.Node) -> Shape:
        """The shape of a tensor."""
        return tuple(self._size(size) for size in walk.shape(node))

    def _size(self, size: int | torch.SymInt) -> int:
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr.subs(dict.fromkeys(self.symbols, self.batch))
        return int(expression) if expression.is_number else walk.hint(size)


def fused_in_float(node: fx.Node) -> fx.Node | None:
    """Return the activation that the runtime folds into a float convolution: its only reader."""
    row = role(node)
    if row is None or row.kind is not Kind.CONVOLUTION or len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    return reader if reader.target in _FUSED else None


def kernels_of(node: fx.Node, sizes: Sizes, absorbed: fx.Node | None, batched: bool) -> Both:
    """The kernels of an operator.

    Args:
        node: a call.
        sizes: of its operands.
        absorbed: the rectifier that its integer kernel absorbs.
        batched: a linear that is a matrix product and an addition in the runtime, not a Gemm.
    """
    row = role(node)
    if row is None:
        return Both()
    activation = "" if absorbed is None else _FUSED.get(absorbed.target, "Relu")
    if row.kind is Kind.CONVOLUTION:
        return _convolution(node, sizes, activation)
    if row.kind is Kind.LINEAR:
        return _linear(node, row, sizes, batched)
    if row.kind is Kind.GATE:
        return _gate(node, sizes)
    if row.kind is Kind.HARD_SIGMOID:
        return Both((Kernel("HardSigmoid", (sizes.of(node),)),), (_rescaled(sizes.of(node)),))
    if row.kind in (Kind.LAYOUT, Kind.AVERAGE):
        return _moved(node, row, sizes)
    return _simple(node, row, sizes, activation)


def _gate(node: fx.Node, sizes: Sizes) -> Both:
    """A hard sigmoid is no kernel in integers, but a change of scale."""
    shape = sizes.of(node)
    kernel = Kernel("Gate", (shape,), activation=_GATES[node.target])
    if node.target is not aten.hardswish.default:
        return _both(kernel)
    return Both((kernel,), (_rescaled(shape), Kernel("Mul", (shape, shape), precision="int8")))


def _rescaled(shape: Shape) -> Kernel:
    return Kernel("LeakyRelu", (shape,), (), (("alpha", 1.0),), "int8")


def _both(kernel: Kernel) -> Both:
    return Both((kernel,), (replace(kernel, precision="int8"),))


def _convolution(node: fx.Node, sizes: Sizes, activation: str) -> Both:
    source, weight = (sizes.of(_operand(node, name)) for name in ("input", "weight"))
    rank = len(weight) - 2
    attributes: dict[str, Attribute] = {
        "dilations": _listed(walk.argument(node, "dilation", 1), rank),
        "group": walk.argument(node, "groups", 1),
        "kernel_shape": weight[2:],
        "strides": _listed(walk.argument(node, "stride", 1), rank),
    }
    padding = walk.argument(node, "padding", 0)
    if isinstance(padding, str):
        attributes["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[padding]
    else:
        attributes["pads"] = _listed(padding, rank) * 2
    kernel = Kernel("Conv", (source,), (weight, weight[:1]), tuple(sorted(attributes.items())))
    follower = fused_in_float(node)
    in_float = "" if follower is None else _FUSED[follower.target]
    whole = replace(_over_blocks(kernel), precision="int8", activation=activation)
    return Both((replace(kernel, activation=in_float),), (whole,))


def _over_blocks(kernel: Kernel) -> Kernel:
    """A convolution of an image as it is lowered in integers (`fxcompress.lowering.stem_forms`)."""
    given: dict[str, Any] = dict(kernel.attributes)
    weight, bias = kernel.stored
    plain = given["group"] == 1 and given["dilations"] == (1, 1) and "pads" in given
    form = blocks_of(kernel.inputs[0], weight, given["strides"], given["pads"]) if plain else None
    if form is None:
        return kernel
    n, c, h, w = kernel.inputs[0]
    wide = c * form.stride**2
    given.update(kernel_shape=form.kernel, pads=form.pads, strides=(1, 1))
    image = (n, wide, h // form.stride, w // form.stride)
    return Kernel("Conv", (image,), ((weight[0], wide, *form.kernel), bias), tuple(sorted(given.items())))


def _linear(node: fx.Node, row: Role, sizes: Sizes, batched: bool) -> Both:
    source = sizes.of(activations(node, row)[0])
    weight = sizes.of(_operand(node, row.weight))
    if len(weight) != 2:  # a product of two activations, which has no integer kernel
        return Both((Kernel("MatMul", (source,), (weight,)),))
    wide = weight if row.axis % len(weight) == 1 else weight[::-1]
    if batched:
        kernel = Kernel("MatMul", (source,), (wide,))
    else:
        rows = (prod(source[:-1]), source[-1])
        kernel = Kernel("Gemm", (rows,), (wide[::-1], wide[1:]), (("transB", 1),))
    return Both((kernel,), (replace(kernel, precision="int8>float32"),))


def _moved(node: fx.Node, row: Role, sizes: Sizes) -> Both:
    """Pools and permutations; what only renames dimensions takes no time."""
    source = sizes.of(activations(node, row)[0])
    if node.target in (aten.max_pool2d.default, aten.avg_pool2d.default):
        window = _listed(walk.argument(node, "kernel_size"), 2)
        attributes: dict[str, Attribute] = {
            "ceil_mode": int(bool(walk.argument(node, "ceil_mode", False))),
            "kernel_shape": window,
            "pads": _listed(walk.argument(node, "padding", 0), 2) * 2,
            "strides": _listed(walk.argument(node, "stride", None) or window, 2),
        }
        name = "MaxPool" if node.target is aten.max_pool2d.default else "AveragePool"
        return _both(Kernel(name, (source,), (), tuple(sorted(attributes.items()))))
    order = _order(node, len(source))
    if order is None:
        return Both((), ())
    kernel = Kernel("Transpose", (source,), (), (("perm", order),))
    return Both((kernel,), ()) if order in TURNS else _both(kernel)


def turns_channels(node: fx.Node) -> bool:
    """Whether a permutation of an image only moves its channels from second to last or back."""
    return _order(node, walk.value(node).dim() if walk.is_tensor(node) else 0) in TURNS


def _order(node: fx.Node, rank: int) -> tuple[int, ...] | None:
    if node.target is aten.permute.default:
        return tuple(dim % rank for dim in walk.argument(node, "dims"))
    if node.target is aten.transpose.int:
        order = list(range(rank))
        a, b = (walk.argument(node, name) % rank for name in ("dim0", "dim1"))
        order[a], order[b] = order[b], order[a]
        return tuple(order)
    return None


def _simple(node: fx.Node, row: Role, sizes: Sizes, activation: str) -> Both:
    sources = tuple(sizes.of(source) for source in activations(node, row))
    if row.kind is Kind.CONCATENATE:
        axis = walk.argument(node, "dim", 0) % len(sources[0])
        return _both(Kernel("Concat", sources, (), (("axis", axis),)))
    if row.kind in _SIMPLE:
        kernel = Kernel(_SIMPLE[row.kind], sources)
        return Both((kernel,), (replace(kernel, precision="int8", activation=activation),))
    return Both((), ())


def _listed(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * rank if len(values) == 1 else values


def _operand(node: fx.Node, name: str | None) -> fx.Node:
    found = walk.argument(node, name) if name is not None else None
    assert isinstance(found, fx.Node), node
    return found

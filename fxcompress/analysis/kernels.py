"""Which kernels an operator becomes in the runtime, with its shapes as dimension expressions.

Only what takes time is listed. What the runtime fuses into the convolution or product before it (a folded
batch norm, an activation, the addition of a residual) is free. Operators that are not listed cost the same at
every width: their time is part of a program's constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fxcompress.axes.expression import Dim, Product, find
from fxcompress.ops.arguments import arguments, tensor_arguments
from fxcompress.ops.dimensions.space import Dims, Space
from fxcompress.runtime.kernel_models import Attribute

aten = torch.ops.aten


@dataclass(frozen=True)
class Template:
    """A kernel whose shapes, and whose attribute `group`, are dimensions that may shrink."""

    operator: str
    inputs: tuple[Dims, ...]
    stored: tuple[Dims, ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    groups: tuple[Dim, ...] = ()


Row = Callable[[Space, Node], list[Template]]


def _listed(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * rank if len(values) == 1 else values


def _convolution(space: Space, node: Node) -> list[Template]:
    """Conv and ConvTranspose; the groups are what the input has more channels of than the weight reads."""
    bound = arguments(node)
    x, weight = space.of(bound["input"]), space.of(bound["weight"])
    rank = len(weight) - 2
    transposed = bool(bound.get("transposed")) or "transpose" in str(node.target)
    attributes: dict[str, Attribute] = {
        "strides": _listed(bound["stride"], rank),
        "dilations": _listed(bound["dilation"], rank),
        "kernel_shape": tuple(dim.size for dim in weight[2:]),
    }
    if isinstance(bound["padding"], str):
        attributes["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[bound["padding"]]
    else:
        attributes["pads"] = _listed(bound["padding"], rank) * 2
    if transposed:
        attributes["output_padding"] = _listed(bound.get("output_padding", 0), rank)
    groups: tuple[Dim, ...] = ()
    count = bound.get("groups", 1)
    if isinstance(count, int) and count > 1:
        groups = _outer(x[1], count)
    operator = "ConvTranspose" if transposed else "Conv"
    stored = (weight,) if bound.get("bias") is None else (weight, space.of(bound["bias"]))
    return [Template(operator, (x,), stored, tuple(sorted(attributes.items())), groups)]


def _outer(dim: Dim, count: int) -> tuple[Dim, ...]:
    """The outermost factors of a dimension that make up `count` positions."""
    taken: list[Dim] = []
    size = 1
    for factor in factors(dim):
        if size == count:
            break
        taken.append(factor)
        size *= factor.size
    if size != count:
        raise LookupError(f"{count} groups of {dim}")
    return tuple(taken)


def _linear(space: Space, node: Node) -> list[Template]:
    """Gemm on rows, MatMul and Add on more dimensions."""
    bound = arguments(node)
    x, weight = space.of(bound["input"]), space.of(bound["weight"])
    bias = () if bound["bias"] is None else (space.of(bound["bias"]),)
    if len(x) == 2:
        return [Template("Gemm", (x,), (weight, *bias), (("transB", 1),))]
    result = [Template("MatMul", (x,), (weight[::-1],))]
    if bias:
        result.append(Template("Add", (space.of(node),), bias))
    return result


def _addmm(space: Space, node: Node) -> list[Template]:
    bound = arguments(node)
    a, b = bound["mat1"], bound["mat2"]
    return [_product_of(space, a, b)]


def _matmul(space: Space, node: Node) -> list[Template]:
    a, b = tensor_arguments(node)[:2]
    return [_product_of(space, a, b)]


def _product_of(space: Space, a: Node, b: Node) -> Template:
    if b.op == "get_attr":
        return Template("MatMul", (space.of(a),), (space.of(b),))
    return Template("MatMul", (space.of(a), space.of(b)))


def _attention(space: Space, node: Node) -> list[Template]:
    """Scores, softmax, weighted sum; shared keys and values are read once per query head."""
    bound = arguments(node)
    q, k, v = (space.of(bound[name]) for name in ("query", "key", "value"))
    return [Template("Attention", (q, (*q[:-2], k[-2], q[-1]), (*q[:-2], k[-2], v[-1])))]


def _chain(*operators: str) -> Row:
    """Element-wise steps on one tensor, each its own kernel."""

    def row(space: Space, node: Node) -> list[Template]:
        dims = space.of(node)
        return [Template(name, (dims, dims) if name == "Mul" else (dims,)) for name in operators]

    return row


def _activation(*operators: str) -> Row:
    """Free behind a convolution, which absorbs it; else its own kernels."""
    chain = _chain(*operators)
    return lambda space, node: [] if _absorbs(node.all_input_nodes[0]) else chain(space, node)


def _binary(operator: str) -> Row:
    def row(space: Space, node: Node) -> list[Template]:
        sources = [source for source in tensor_arguments(node) if source in space.values]
        if len(sources) < 2:
            return [Template("Relu", (space.of(node),))]  # with a number: one pass over memory
        if operator == "Add" and any(_absorbs(source) for source in sources):
            return []
        return [Template(operator, tuple(space.of(source) for source in sources[:2]))]

    return row


_CONVOLUTIONS = frozenset(
    {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv2d.padding}
)
_FOLDED = frozenset({aten.batch_norm.default, aten.dropout.default})


def _absorbs(node: Node) -> bool:
    """Whether a convolution, with what is folded into it, makes this value for one reader alone."""
    while len(node.users) == 1 and (node.target in _FOLDED or _residual(node)):
        node = next((source for source in node.all_input_nodes if _made_by_convolution(source)), node)
        if node.target in _CONVOLUTIONS:
            return len(node.users) == 1
        if node.target not in _FOLDED:
            return False
    return node.target in _CONVOLUTIONS and len(node.users) == 1


def _residual(node: Node) -> bool:
    return node.target is aten.add.Tensor and len(tensor_arguments(node)) == 2


def _made_by_convolution(node: Node) -> bool:
    while node.target in _FOLDED:
        node = node.all_input_nodes[0]
    return node.target in _CONVOLUTIONS


def _batch_norm(space: Space, node: Node) -> list[Template]:
    """Folded into the convolution or product before it, else one multiplication and addition."""
    source = node.all_input_nodes[0]
    folds = _made_by_convolution(source) or source.target is aten.linear.default
    return [] if folds else [Template("Relu", (space.of(node),))]


def _layer_norm(space: Space, node: Node) -> list[Template]:
    bound = arguments(node)
    dims = space.of(bound["input"])
    axis = len(dims) - len(bound["normalized_shape"])
    if bound["weight"] is None or bound["bias"] is None:
        return [Template("Softmax", (dims,))]
    stored = (space.of(bound["weight"]), space.of(bound["bias"]))
    return [Template("LayerNormalization", (dims,), stored, (("axis", axis),))]


def _softmax(space: Space, node: Node) -> list[Template]:
    dim = int(arguments(node)["dim"])
    return [Template("Softmax", (space.of(node),), (), (("axis", dim),))]


def _pool(operator: str) -> Row:
    def row(space: Space, node: Node) -> list[Template]:
        bound = arguments(node)
        dims = space.of(bound["self"])
        rank = len(dims) - 2
        kernel = _listed(bound["kernel_size"], rank)
        attributes: dict[str, Attribute] = {
            "ceil_mode": int(bool(bound["ceil_mode"])),
            "kernel_shape": kernel,
            "pads": _listed(bound["padding"], rank) * 2,
            "strides": _listed(bound["stride"] or kernel, rank),
        }
        return [Template(operator, (dims,), (), tuple(attributes.items()))]

    return row


def _global_pool(space: Space, node: Node) -> list[Template]:
    """A mean over all of space, under whichever name."""
    source = node.all_input_nodes[0]
    return [Template("GlobalAveragePool", (space.of(source),))] if len(space.of(source)) == 4 else []


def _concatenation(space: Space, node: Node) -> list[Template]:
    sources = tuple(space.of(source) for source in tensor_arguments(node))
    dim = int(arguments(node).get("dim", 0))
    return [Template("Concat", sources, (), (("axis", dim),))]


def _permutation(space: Space, node: Node) -> list[Template]:
    bound = arguments(node)
    dims = space.of(bound["self"])
    order = list(range(len(dims)))
    if "dims" in bound:
        order = [place % len(dims) for place in bound["dims"]]
    else:
        a, b = bound["dim0"] % len(dims), bound["dim1"] % len(dims)
        order[a], order[b] = order[b], order[a]
    return [Template("Transpose", (dims,), (), (("perm", tuple(order)),))]


def factors(dim: Dim) -> tuple[Dim, ...]:
    """The factors of a product, outermost first; anything else is one factor."""
    dim = find(dim)
    return tuple(map(find, dim.factors)) if isinstance(dim, Product) else (dim,)


ROWS: dict[Any, Row] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.scaled_dot_product_attention.default: _attention,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.softmax.int: _softmax,
    aten.relu.default: _activation("Relu"),
    aten.relu6.default: _activation("Relu"),
    aten.hardtanh.default: _activation("Relu"),
    aten.leaky_relu.default: _activation("Relu"),
    aten.sigmoid.default: _activation("Sigmoid"),
    aten.tanh.default: _activation("Tanh"),
    aten.hardsigmoid.default: _activation("HardSigmoid"),
    aten.hardswish.default: _chain("HardSigmoid", "Mul"),
    aten.silu.default: _chain("Sigmoid", "Mul"),
    aten.gelu.default: _chain("Gelu"),
    aten.add.Tensor: _binary("Add"),
    aten.sub.Tensor: _binary("Sub"),
    aten.mul.Tensor: _binary("Mul"),
    aten.div.Tensor: _binary("Div"),
    aten.max_pool2d.default: _pool("MaxPool"),
    aten.avg_pool2d.default: _pool("AveragePool"),
    aten.adaptive_avg_pool2d.default: _global_pool,
    aten.mean.dim: _global_pool,
    aten.cat.default: _concatenation,
    aten.transpose.int: _permutation,
    aten.permute.default: _permutation,
}


def templates(space: Space, node: Node) -> list[Template]:
    """The kernels of a node; none where its operator is not listed or its use is out of the ordinary."""
    row = ROWS.get(node.target)
    if row is None or node not in space.values:
        return []
    try:
        return row(space, node)
    except (AssertionError, IndexError, KeyError, LookupError, TypeError, ValueError):
        return []

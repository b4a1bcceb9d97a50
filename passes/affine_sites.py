"""Operators that are linear in their weight, and what may be written into it.

Shared by the passes that fold something into a stored weight: where the weight and the channels of each
operator are, which axis a layout operator carries the channels to, and when a weight must be left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.graph.edit import add_tensor, set_arg, set_tensor
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, tensor, value
from fxcompress.numerics.folding import scale_rows, scale_transposed
from fxcompress.numerics.kernel_blocks import Layout
from fxcompress.passes.shape_facts import operand, same_sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Affine:
    """An operator that is linear in its weight: the positions of input, weight and bias, and its channels.

    ``spatial`` is the number of axes after the channels in input and output (None: all but batch and
    channels), ``axis`` the weight's output axis; ``mirrored`` weights are ``[in, out/groups, *kernel]``.
    """

    weight: int
    bias: int
    spatial: int | None
    axis: int = 0
    mirrored: bool = False
    x: int = 0


AFFINES: dict[object, Affine] = {
    aten.conv1d.default: Affine(1, 2, spatial=1),
    aten.conv1d.padding: Affine(1, 2, spatial=1),
    aten.conv2d.default: Affine(1, 2, spatial=2),
    aten.conv2d.padding: Affine(1, 2, spatial=2),
    aten.conv3d.default: Affine(1, 2, spatial=3),
    aten.conv3d.padding: Affine(1, 2, spatial=3),
    aten.conv_transpose1d.default: Affine(1, 2, spatial=1, mirrored=True),
    aten.conv_transpose2d.input: Affine(1, 2, spatial=2, mirrored=True),
    aten.conv_transpose3d.input: Affine(1, 2, spatial=3, mirrored=True),
    aten.convolution.default: Affine(1, 2, spatial=None),  # its flag `transposed` says whether it is mirrored
    aten.linear.default: Affine(1, 2, spatial=0),
    aten.addmm.default: Affine(2, 0, spatial=0, axis=1, x=1),
}

LAYOUTS = frozenset(
    {
        aten.permute.default,
        aten.transpose.int,
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.contiguous.default,
        aten.clone.default,
    }
)
"""Operators that move elements and change none."""


def is_affine(node: object) -> bool:
    """Whether a node calls an operator of the table."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in AFFINES


def is_mirrored(node: Node) -> bool:
    """Whether the operator is a transposed convolution."""
    return AFFINES[node.target].mirrored or bool(argument(node, "transposed", False))


def layout_of(node: Node) -> Layout:
    """The layout of an operator's weight."""
    if is_mirrored(node):
        return "mirrored"
    return "columns" if AFFINES[node.target].axis else "rows"


def groups_of(node: Node) -> int:
    """The groups of a convolution; a linear has one."""
    return int(argument(node, "groups", 1))


def channel_axis(node: Node, rank: int) -> int:
    """The axis of the channels in an input or output of ``rank`` axes."""
    spatial = AFFINES[node.target].spatial
    return 1 if spatial is None else rank - spatial - 1


def padding_of(node: Node) -> tuple[int, ...] | None:
    """The zeros around the input, one number per spatial axis; None where they are given by a word."""
    row = AFFINES[node.target]
    kernel = value(weight_node(node)).shape[2:]
    rank = len(kernel)
    if row.spatial == 0:
        return ()
    padding = argument(node, "padding", 0)
    if isinstance(padding, str):
        return (0,) * rank if padding == "valid" or all(size == 1 for size in kernel) else None
    return every_axis(padding, rank)


def every_axis(given: int | list[int] | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """A convolution's option with a number per spatial axis, where one number may stand for all."""
    numbers = (given,) if isinstance(given, int) else tuple(given)
    return numbers * rank if len(numbers) == 1 else numbers


def carried(node: Node, dim: int) -> int | None:
    """Return the axis of a layout operator's input that is axis ``dim`` of its output, or None."""
    before, after = value(node.all_input_nodes[0]), value(node)
    rank = before.dim()
    if node.target == aten.permute.default:
        return int(argument(node, "dims")[dim]) % rank
    if node.target == aten.transpose.int:
        first, second = (int(argument(node, name)) % rank for name in ("dim0", "dim1"))
        return {first: second, second: first}.get(dim, dim)
    # Row-major reshapes keep an axis when everything up to it, or everything from it on, keeps its sizes.
    if dim < rank and same_sizes(before.shape[: dim + 1], after.shape[: dim + 1]):
        return dim
    behind = after.dim() - dim
    if behind <= rank and same_sizes(before.shape[rank - behind :], after.shape[dim:]):
        return rank - behind
    return None


def moved(layout: Node, axis: int) -> int | None:
    """Where a layout operator moves an axis of its input to, None where it mixes it with another."""
    return next((dim for dim in range(value(layout).dim()) if carried(layout, dim) == axis), None)


def weight_obstacle(program: Program, affine: Node) -> str | None:
    """Why weight and bias of an operator must be left alone, or None."""
    row = AFFINES[affine.target]
    for index, name in ((row.weight, "weight"), (row.bias, "bias")):
        node = operand(affine, index)
        if node is None:
            continue
        if not is_stored(program, node):
            return f"the {name} of {affine.name} is computed, not stored"
        if len(node.users) > 1:
            others = ", ".join(sorted(user.name for user in node.users if user is not affine))
            return f"the {name} of {affine.name} is shared ({node.target}, also used by {others})"
    if affine.target == aten.addmm.default and affine.kwargs:
        return f"{affine.name} scales its terms"
    if value(weight_node(affine)).dim() < 2:
        return f"the weight of {affine.name} is a vector"
    bias = bias_node(affine)
    channels = value(affine).shape[channel_axis(affine, value(affine).dim())]
    if bias is not None and tuple(value(bias).shape) != (channels,):
        return f"the bias of {affine.name} is not one number per channel"
    return None


def scaler(affine: Node) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that scales this operator's weight along its output channels."""
    if is_mirrored(affine):
        return partial(scale_transposed, groups=groups_of(affine))
    return partial(scale_rows, axis=AFFINES[affine.target].axis)


def weight_node(affine: Node) -> Node:
    """The node of an operator's weight."""
    return required(affine, AFFINES[affine.target].weight)


def bias_node(affine: Node) -> Node | None:
    """The node of an operator's bias, None where it has none."""
    return operand(affine, AFFINES[affine.target].bias)


def weight_of(program: Program, affine: Node) -> Tensor:
    """An operator's stored weight."""
    return tensor(program, weight_node(affine)).detach()


def bias_of(program: Program, affine: Node) -> Tensor | None:
    """An operator's stored bias, None where it has none."""
    return detached(program, bias_node(affine))


def store(program: Program, affine: Node, weight: Tensor | None, bias: Tensor | None) -> None:
    """Replace an operator's weight and bias, each where one is given; a bias that is new gets a name."""
    node = weight_node(affine)
    trainable = isinstance(tensor(program, node), nn.Parameter)
    if weight is not None:
        set_tensor(program, str(node.target), weight)
    if bias is None:
        return
    place = bias_node(affine)
    if place is not None:
        set_tensor(program, str(place.target), bias)
    else:
        added = add_tensor(program, bias_name(str(node.target)), bias, trainable=trainable)
        set_arg(affine, AFFINES[affine.target].bias, added)


def bias_name(weight: str) -> str:
    """Return the name of a new bias beside a weight: ``conv.weight`` makes ``conv.bias``."""
    prefix, dot, leaf = weight.rpartition(".")
    return f"{prefix}{dot}{'bias' if leaf == 'weight' else f'{leaf}_bias'}"


def required(node: Node, index: int = 0) -> Node:
    """The node at a position of a call that has one there."""
    found = operand(node, index)
    assert found is not None  # every row of the tables points at a tensor
    return found


def is_stored(program: Program, node: object) -> bool:
    """Whether a node is a tensor of the program."""
    return isinstance(node, Node) and node.op == "get_attr" and isinstance(tensor(program, node), Tensor)


def detached(program: Program, node: Node | None) -> Tensor | None:
    """The tensor of a node without its gradient, None for no node."""
    return None if node is None else tensor(program, node).detach()


def others_of(node: Node, *known: Node) -> str | None:
    """The readers of a node's value beside one that is known, as words; None where there are none."""
    others = sorted(user.name for user in node.users if user not in known)
    return f"the output of {node.name} has other consumers ({', '.join(others)})" if others else None

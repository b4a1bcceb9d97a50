"""Merge branches that read one tensor and are added into one operator.

    add(conv3x3(x, V, b), conv1x1(x, W, c))      =>   conv3x3(x, V + padded W, b + c)
    add(conv3x3(x, V, b), batch_norm(x))         =>   conv3x3(x, V + s * identity, b + t)        RepVGG
    add(conv3x3(x, V, b), x)                     =>   conv3x3(x, V + identity, b)
    add(linear(x, V), linear(x, W))              =>   linear(x, V + W)

Two kernels become one where they step and pad alike: the taps of one lie on the taps of a kernel that holds
both, `(p - q) / dilation` apart for paddings p and q. That kernel is used where its multiply-accumulates are
no more than those of the two; the identity counts none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph.edit import erase, replace_uses, set_argument
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, hint_shape, source, value
from fxcompress.numerics import kernel_blocks
from fxcompress.passes import affine_sites as sites
from fxcompress.passes.channel_maps import channel_map
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.shape_facts import operand, same_sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Branch:
    """One summand: its last node, what it reads, and its kernel.

    ``site`` is None for the identity, a scale or a batch norm of ``x``.
    """

    node: Node
    x: Node
    site: Node | None
    blocks: Tensor
    bias: Tensor | None
    padding: tuple[int, ...]


@dataclass(frozen=True)
class MergeBranches:
    """Merge parallel convolutions or linears of one input, and the identity beside them, into one."""

    name: ClassVar[str] = "merge-branches"

    def run(self, program: Program) -> Outcome:
        """Return a program whose parallel linear branches are one operator each."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for node in list(edited.graph.nodes):
            if node.target != aten.add.Tensor:
                continue
            pair = _pair(edited, node)
            if pair is None:
                continue
            if isinstance(pair, str):
                declined.append(Decline(node.name, pair, source(node)))
                continue
            kept, other = pair
            _merge(edited, node, kept, other)
            changed.append(f"{other.node.name} into {kept.node.name}")
        return outcome(program, edited, changed, declined)


def _pair(program: Program, node: Node) -> tuple[Branch, Branch] | str | None:
    """The branches of an addition, the one to keep first; why they stay; None where there are none."""
    left, right = operand(node), operand(node, 1)
    if left is None or right is None or left is right:
        return None
    found = [item for item in (left, right) if sites.is_affine(item) and not sites.is_mirrored(item)]
    if not found:
        return None
    kept = found[0]
    other = right if kept is left else left
    if _reads(program, other) is not sites.required(kept, sites.AFFINES[kept.target].x):
        return None
    if argument(node, "alpha") != 1 or not _same_values(node, left, right):
        return "adds values of different shapes or with a factor"
    first = _branch(program, kept, kept, node)
    second = first if isinstance(first, str) else _branch(program, other, kept, node)
    if isinstance(first, str) or isinstance(second, str):
        return str(first) if isinstance(first, str) else str(second)
    return _ordered(first, second)


def _reads(program: Program, node: Node) -> Node | None:
    """What a summand is computed from: the input of its operator or map; itself where it is neither."""
    if sites.is_affine(node):
        return operand(node, sites.AFFINES[node.target].x)
    found = channel_map(program, node)
    return node if found is None else found.x


def _same_values(node: Node, left: Node, right: Node) -> bool:
    kinds = {value(item).dtype for item in (node, left, right)}
    return len(kinds) == 1 and all(same_sizes(value(item).shape, value(node).shape) for item in (left, right))


def _branch(program: Program, node: Node, kept: Node, sum_node: Node) -> Branch | str:
    """A summand as a kernel beside that of ``kept``, or why it is none."""
    if node.target == kept.target:
        return _operator(program, node, kept, sum_node)
    if sites.is_affine(node):
        return f"{node.name} and {kept.name} are different operators"
    return _identity(program, node, kept, sum_node)


def _operator(program: Program, node: Node, kept: Node, sum_node: Node) -> Branch | str:
    others = sites.others_of(node, sum_node)
    obstacle = others or sites.weight_obstacle(program, node)
    if obstacle is not None:
        return obstacle
    if sites.is_mirrored(node):
        return f"{node.name} is a transposed convolution"
    padding = sites.padding_of(node)
    if padding is None:
        return f"{node.name} pads by a word"
    groups = sites.groups_of(node)
    if groups != sites.groups_of(kept):
        return f"{node.name} and {kept.name} have different groups"
    rank = len(padding)
    for option in ("stride", "dilation"):
        mine, its = (sites.every_axis(argument(item, option, 1), rank) for item in (node, kept))
        if mine != its and not (option == "dilation" and math.prod(_kernel(node)) == 1):
            return f"{node.name} and {kept.name} have different {option}s"
    blocks = kernel_blocks.to_blocks(sites.weight_of(program, node), groups, sites.layout_of(node))
    x = sites.required(node, sites.AFFINES[node.target].x)
    return Branch(node, x, node, blocks, sites.bias_of(program, node), padding)


def _identity(program: Program, node: Node, kept: Node, sum_node: Node) -> Branch | str:
    """The input itself, or a scale and shift per channel of it, as a kernel of one tap."""
    own = sites.weight_of(program, kept)
    groups, rank = sites.groups_of(kept), max(own.dim() - 2, 0)
    blocks = kernel_blocks.to_blocks(own, groups, sites.layout_of(kept))
    if blocks.shape[1] != blocks.shape[2]:
        return f"{kept.name} has other channels than its input"
    if any(step != 1 for step in sites.every_axis(argument(kept, "stride", 1), rank)):
        return f"{kept.name} steps"
    channels = groups * blocks.shape[1]
    zeros = (0,) * rank
    found = channel_map(program, node)
    if found is None:
        eye = kernel_blocks.identity_kernel(groups, blocks.shape[1], rank)
        return Branch(node, node, None, eye, None, zeros)
    if (others := sites.others_of(node, sum_node)) is not None:
        return others
    if found.axis not in (None, sites.channel_axis(kept, value(node).dim())):
        return f"{node.name} scales another axis than the channels of {kept.name}"
    vectors = found.vectors(channels)
    eye = kernel_blocks.identity_kernel(groups, blocks.shape[1], rank, vectors.scale)
    return Branch(node, found.x, None, eye, vectors.shift if found.shifts else None, zeros)


def _kernel(node: Node) -> tuple[int, ...]:
    return tuple(int(size) for size in value(sites.weight_node(node)).shape[2:])


def _ordered(first: Branch, second: Branch) -> tuple[Branch, Branch] | str:
    """The branch to keep and the one to merge into it, if one kernel for both does not cost more."""
    if second.site is not None and second.blocks[0, 0, 0].numel() > first.blocks[0, 0, 0].numel():
        first, second = second, first
    placed = _places(first, second)
    if isinstance(placed, str):
        return placed
    size, *_ = placed
    assert first.site is not None
    per_tap = _macs(first.site) // math.prod(first.blocks.shape[3:])
    merged = per_tap * math.prod(size)
    apart = _macs(first.site) + (_macs(second.site) if second.site is not None else 0)
    if merged > apart:
        return f"one kernel takes {merged} multiply-accumulates, two take {apart}"
    return first, second


def _macs(site: Node) -> int:
    """Multiply-accumulates of an operator at the example's sizes."""
    weight = value(sites.weight_node(site))
    channels = sites.channel_axis(site, value(site).dim())
    shape = hint_shape(site)
    positions = math.prod(size for dim, size in enumerate(shape) if dim != channels)
    return positions * int(weight.numel())


def _places(first: Branch, second: Branch) -> tuple[list[int], list[int], list[int], list[int]] | str:
    """Size and padding of a kernel that holds both, and where in it each begins; per spatial axis."""
    assert first.site is not None
    rank = len(first.padding)
    spread = sites.every_axis(argument(first.site, "dilation", 1), rank)
    size, padding, here, there = [], [], [], []
    for axis in range(rank):
        apart, rest = divmod(first.padding[axis] - second.padding[axis], spread[axis])
        if rest:
            return f"the taps of {second.node.name} lie between those of {first.node.name}"
        begin = min(0, apart)
        end = max(first.blocks.shape[3 + axis], apart + second.blocks.shape[3 + axis])
        size.append(end - begin)
        padding.append(first.padding[axis] - begin * spread[axis])
        here.append(-begin)
        there.append(apart - begin)
    return size, padding, here, there


def _merge(program: Program, node: Node, kept: Branch, other: Branch) -> None:
    """Let the operator that is kept compute the sum."""
    placed = _places(kept, other)
    assert kept.site is not None
    assert not isinstance(placed, str)  # _ordered has looked
    size, padding, here, there = placed
    one = kernel_blocks.place_kernel(kept.blocks, size, here)
    blocks = one + kernel_blocks.place_kernel(other.blocks, size, there)
    dtype = sites.weight_of(program, kept.site).dtype
    weight = kernel_blocks.from_blocks(blocks, dtype, sites.layout_of(kept.site))
    biases = [branch.bias.double() for branch in (kept, other) if branch.bias is not None]
    bias = torch.stack(biases).sum(0).to(dtype) if biases else None
    sites.store(program, kept.site, weight, bias)
    if tuple(padding) != kept.padding:
        set_argument(kept.site, "padding", padding)
    replace_uses(node, kept.site)
    erase(node)

"""Operators that are ``scale * x + shift`` per channel, read from the graph.

    mul, div, add, sub by a stored vector along one axis, by a stored number or by a literal; neg; and a batch
    norm in evaluation mode

A map by a number is *uniform*: it has no axis, and may pass any operator that only moves elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, tensor
from fxcompress.numerics.folding import ChannelAffine, batch_norm_as_affine
from fxcompress.passes.affine_sites import detached, is_stored
from fxcompress.passes.shape_facts import same_sizes, value_of

aten = torch.ops.aten

SUMS = frozenset({aten.add.Tensor, aten.add.Scalar})
DIFFERENCES = frozenset({aten.sub.Tensor, aten.sub.Scalar})
REVERSED = frozenset({aten.rsub.Tensor, aten.rsub.Scalar})
PRODUCTS = frozenset({aten.mul.Tensor, aten.mul.Scalar})
QUOTIENTS = frozenset({aten.div.Tensor, aten.div.Scalar})
BINARY = SUMS | DIFFERENCES | REVERSED | PRODUCTS | QUOTIENTS

ROOTS = frozenset({aten.rsqrt.default, aten.sqrt.default, aten.reciprocal.default, aten.pow.Tensor_Scalar})


@dataclass(frozen=True)
class ChannelMap:
    """``node`` computes ``scale * x + shift``; two float64 vectors along ``axis``, of one element without."""

    node: Node
    x: Node
    axis: int | None
    affine: ChannelAffine

    def vectors(self, channels: int) -> ChannelAffine:
        """Scale and shift with one element per channel."""
        scale, shift = self.affine.scale, self.affine.shift
        return ChannelAffine(scale.expand(channels), shift.expand(channels))

    @property
    def shifts(self) -> bool:
        """Whether anything is added."""
        return bool(self.affine.shift.any())


def channel_map(program: Program, node: Node) -> ChannelMap | None:
    """The map that a node computes, None where it computes something else."""
    if node.op != "call_function":
        return None
    if node.target == aten.batch_norm.default:
        return _batch_norm(program, node)
    if node.target == aten.neg.default:
        return _checked(node, node.args[0], None, torch.tensor([-1.0]), torch.zeros(1))
    if node.target not in BINARY or len(node.args) < 2:
        return None
    left, right = node.args[0], node.args[1]
    reverse = _is_fixed(program, left)
    x, other = (right, left) if reverse else (left, right)
    if not isinstance(x, Node) or _is_fixed(program, x) or not _is_fixed(program, other):
        return None
    vector = _vector(program, x, other)
    if vector is None:
        return None
    axis, values = vector
    line = _line(node, values, reverse)
    return None if line is None else _checked(node, x, axis, *line)


def compose(first: ChannelAffine, second: ChannelAffine) -> ChannelAffine:
    """``second`` after ``first``."""
    return ChannelAffine(second.scale * first.scale, second.scale * first.shift + second.shift)


def is_normalised(program: Program, found: ChannelMap) -> bool:
    """Whether a map scales what a hand-written norm divided by its root: runtimes compute both in one."""
    x = found.x
    while (below := channel_map(program, x)) is not None:
        x = below.x
    while x.target in (aten.to.dtype, aten._to_copy.default) and isinstance(x.args[0], Node):
        x = x.args[0]
    if x.target not in PRODUCTS | QUOTIENTS:
        return False
    return any(isinstance(item, Node) and item.target in ROOTS for item in x.args)


def _line(node: Node, values: Tensor, reverse: bool) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of a binary operator whose fixed operand is ``values``; on the left if ``reverse``."""
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    if node.target in PRODUCTS:
        return values, zero
    if node.target in QUOTIENTS:
        return None if reverse else (1 / values, zero)
    alpha = float(argument(node, "alpha", 1))
    if node.target in SUMS:  # left + alpha * right
        return (alpha * one, values) if reverse else (one, alpha * values)
    if node.target in DIFFERENCES:  # left - alpha * right
        return (-alpha * one, values) if reverse else (one, -alpha * values)
    return (one, -alpha * values) if reverse else (-alpha * one, values)  # right - alpha * left


def _batch_norm(program: Program, node: Node) -> ChannelMap | None:
    given = {name: argument(node, name) for name in ("running_mean", "running_var", "weight", "bias")}
    if argument(node, "training", False) or given["running_mean"] is None or given["running_var"] is None:
        return None
    if not all(item is None or is_stored(program, item) for item in given.values()):
        return None
    mean, var = tensor(program, given["running_mean"]), tensor(program, given["running_var"])
    gamma, beta = detached(program, given["weight"]), detached(program, given["bias"])
    made = batch_norm_as_affine(mean, var, gamma, beta, float(argument(node, "eps")))
    return _checked(node, node.args[0], 1, made.scale, made.shift)


def _checked(node: Node, x: object, axis: int | None, scale: Tensor, shift: Tensor) -> ChannelMap | None:
    """The map, if it keeps type and shape and has finite numbers."""
    if not isinstance(x, Node):
        return None
    before, after = value_of(x), value_of(node)
    if before is None or after is None or before.dtype != after.dtype or not after.is_floating_point():
        return None
    if not same_sizes(before.shape, after.shape):
        return None
    affine = ChannelAffine(scale.double().reshape(-1), shift.double().reshape(-1))
    finite = torch.isfinite(affine.scale).all() and torch.isfinite(affine.shift).all()
    return ChannelMap(node, x, axis, affine) if finite else None


def _is_fixed(program: Program, operand: object) -> bool:
    if isinstance(operand, bool) or operand is None:
        return False
    return isinstance(operand, int | float) or is_stored(program, operand)


def _vector(program: Program, x: Node, other: object) -> tuple[int | None, Tensor] | None:
    """The axis of ``x`` that a fixed operand lies along, and its float64 numbers; None for other shapes."""
    if not isinstance(other, Node):
        return None, torch.tensor([float(other)], dtype=torch.float64)  # type: ignore[arg-type]
    stored, reached = tensor(program, other).detach(), value_of(x)
    if reached is None or stored.is_complex() or stored.dim() > reached.dim():
        return None
    if stored.numel() == 1:
        return None, stored.double().reshape(1)
    wide = [dim for dim, size in enumerate(stored.shape) if size != 1]
    if len(wide) != 1:
        return None
    return reached.dim() - stored.dim() + wide[0], stored.double().reshape(-1)

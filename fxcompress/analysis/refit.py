"""Which layers of a pruned program can be re-fitted to the original, and where their effect is compared.

A layer that alone feeds a sum through batch norms (and what is an identity in evaluation mode) is compared at
the sum: what a residual stream lacks from earlier blocks is then made up for as well. Of several layers that
feed one sum the last in graph order takes it, for then everything else that enters the sum is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis.contraction import Form, form
from fxcompress.analysis.groups import Analysis
from fxcompress.axes.expression import Axis
from fxcompress.axes.positions import Indices, width
from fxcompress.graph import walk
from fxcompress.graph.program import Program

aten = torch.ops.aten

LARGEST = 4096
"""Unknowns per output that are still solved (in several groups: the root of their squares' sum)."""

FAINT = 1e-3
"""A batch norm that scales a channel below this share of its largest scale hides what the channel lacks."""


@dataclass(frozen=True)
class Site:
    """A layer to correct.

    Args:
        node, twin: the layer in the pruned and in the original program.
        form: the layer as a matrix product.
        bias: the stored vector that takes a constant correction, or None.
        sign: with which sign: a running mean is subtracted.
        target, target_twin: where the effect is compared: the layer itself, or a sum that its output enters.
        scale: by what each output channel is multiplied on the way there; ones for the layer itself.
    """

    node: Node
    twin: Node
    form: Form
    bias: Node | None
    sign: float
    target: Node
    target_twin: Node
    scale: Tensor


@dataclass(frozen=True)
class Refusal:
    """A layer that cannot be re-fitted, and why."""

    node: Node
    reason: str


def sites(
    pruned: Program, analysis: Analysis, indices: dict[Axis, Indices]
) -> tuple[list[Site], list[Refusal]]:
    """The layers to correct, in graph order, and those left alone; `analysis` is of the original program."""
    twins = {node.name: node for node in analysis.program.graph.nodes}
    forms: dict[Node, Form] = {}
    refusals: list[Refusal] = []
    for node in pruned.graph.nodes:
        found = form(node) if node.op == "call_function" else None
        if found is None:
            continue
        reason = found if isinstance(found, str) else _obstacle(pruned, node, found)
        if reason is None and not _matches(node, twins.get(node.name), analysis, indices):
            reason = "the original has no such layer"
        if isinstance(found, str) or reason is not None:
            refusals.append(Refusal(node, str(reason)))
        else:
            forms[node] = found
    reached = {node: _reach(pruned, node, found) for node, found in forms.items()}
    takers = {target: node for node, (target, _) in reached.items()}
    result = []
    for node, found in forms.items():
        target, scale = reached[node]
        if takers[target] is not node or not _matches(target, twins.get(target.name), analysis, indices):
            target, scale = node, torch.ones(1)
        bias, sign = _constant(pruned, node, found)
        result.append(Site(node, twins[node.name], found, bias, sign, target, twins[target.name], scale))
    return result, refusals


def _obstacle(program: Program, node: Node, found: Form) -> str | None:
    weight = walk.tensor(program, found.weight)
    if len(found.weight.users) > 1:
        others = ", ".join(sorted(user.name for user in found.weight.users if user is not node))
        return f"its weight is shared (also used by {others})"
    if found.source.op == "get_attr":
        return "its input is stored: it says nothing about the data"
    if not weight.is_floating_point():
        return "its weight is not floating"
    groups, inputs, _ = found.matrix(weight).shape
    if inputs * inputs * groups > LARGEST**2:
        return f"it has {inputs} unknowns per output in {groups} group(s); at most {LARGEST} are solved"
    return None


def _matches(node: Node, twin: Node | None, analysis: Analysis, indices: dict[Axis, Indices]) -> bool:
    """Whether a value of the pruned program is the twin's value on the positions that stay."""
    if twin is None or twin.target != node.target or not isinstance(analysis.space.values.get(twin), tuple):
        return False
    kept = tuple(width(dim, indices_widths(indices)) for dim in analysis.space.of(twin))
    return kept == walk.hint_shape(node)


def indices_widths(indices: dict[Axis, Indices]) -> dict[Axis, int]:
    """The width of every axis that shrinks."""
    return {axis: len(stay) for axis, stay in indices.items()}


def _reach(program: Program, node: Node, found: Form) -> tuple[Node, Tensor]:
    """The sum that a layer's output enters, with the scale per channel on the way; else the layer itself."""
    at, scale = node, torch.ones(1)
    while len(at.users) == 1:
        (user,) = at.users
        if user.target is aten.batch_norm.default and _carries(found, node):
            affine = _norm_scale(program, user)
            if affine is None:
                break
            scale = scale * affine
        elif user.target is aten.add.Tensor:
            return (user, scale) if _is_sum(user) else (node, torch.ones(1))
        elif user.target not in (aten.dropout.default, aten.contiguous.default, aten.clone.default):
            break
        at = user
    return node, torch.ones(1)


def _carries(found: Form, node: Node) -> bool:
    """Whether the dimension that a batch norm scales is the layer's outputs."""
    return found.channels % walk.value(node).dim() == 1


def _norm_scale(program: Program, norm: Node) -> Tensor | None:
    variance, weight = walk.argument(norm, "running_var"), walk.argument(norm, "weight")
    if variance is None or variance.op != "get_attr" or (weight is not None and weight.op != "get_attr"):
        return None
    scale = (walk.tensor(program, variance).detach().double() + float(walk.argument(norm, "eps"))).rsqrt()
    return scale if weight is None else scale * walk.tensor(program, weight).detach().double()


def _is_sum(node: Node) -> bool:
    sources = node.args[:2]
    return (
        len(set(sources)) == 2
        and all(isinstance(source, Node) and walk.is_tensor(source) for source in sources)
        and all(walk.hint_shape(source) == walk.hint_shape(node) for source in sources)  # type: ignore[arg-type]
        and walk.argument(node, "alpha") == 1
    )


def _constant(program: Program, node: Node, found: Form) -> tuple[Node | None, float]:
    """What takes a constant correction: the layer's own bias, or the running mean of the norm after it."""
    if found.bias is not None:
        return (found.bias, 1.0) if _own(program, found.bias) else (None, 1.0)
    reader = next(iter(node.users), None)
    if reader is None or len(node.users) > 1 or reader.target is not aten.batch_norm.default:
        return None, 1.0
    mean = walk.argument(reader, "running_mean")
    usable = mean is not None and _own(program, mean) and _carries(found, node)
    return (mean, -1.0) if usable else (None, 1.0)


def _own(program: Program, vector: Node) -> bool:
    return vector.op == "get_attr" and len(vector.users) == 1 and walk.tensor(program, vector).dim() == 1

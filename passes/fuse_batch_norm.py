"""Fold a batch norm into the convolution, transposed convolution or linear before it.

    y = batch_norm(conv(x, W, b))   =>   y = conv(x, W * scale, b * scale + shift)

with the algebra of `fxcompress.numerics.folding`. Operators between the two may move the channel axis
or flatten others (`linear -> transpose -> batch_norm1d`), as long as the channels stay one axis.

A site is declined, with its reason, where folding would change another result: the weight or the operator's
output is used elsewhere, the norm measures its own batch (training mode, no running statistics), the weight
is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.graph.edit import add_tensor, erase, reinfer, replace_uses, set_arg, set_tensor, tidy
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, source, tensor, value
from fxcompress.numerics.folding import batch_norm_as_affine, fold_bias, scale_rows, scale_transposed
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.passes.shape_facts import operand, same_sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Affine:
    """An operator that is linear in its weight: the positions of weight and bias, and where the channels are.

    ``spatial`` is the number of axes after the channels in the output (None: all but batch and channels),
    ``axis`` the weight's output axis; ``mirrored`` weights are ``[in, out/groups, *kernel]``.
    """

    weight: int
    bias: int
    spatial: int | None
    axis: int = 0
    mirrored: bool = False


NORMS = frozenset(
    {
        aten.batch_norm.default,
        aten._native_batch_norm_legit_no_training.default,
        aten._native_batch_norm_legit.default,
        aten._native_batch_norm_legit.no_stats,
        aten.native_batch_norm.default,
    }
)
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")

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
    aten.addmm.default: Affine(2, 0, spatial=0, axis=1),
}

LAYOUTS = frozenset(
    {
        aten.permute.default,
        aten.transpose.int,
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.contiguous.default,
        aten.clone.default,
    }
)


@dataclass(frozen=True)
class Site:
    """A batch norm and the operator it folds into; `through` are the layout operators between them."""

    norm: Node
    affine: Node
    through: tuple[Node, ...]


@dataclass(frozen=True)
class FuseBatchNorm:
    """Fold inference batch norms into the affine operators before them."""

    name: ClassVar[str] = "fuse-batch-norm"

    def run(self, program: Program) -> Outcome:
        """Return a program without the batch norms that could be folded."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for node in list(edited.graph.nodes):
            if node.op != "call_function" or node.target not in NORMS:
                continue
            found = _site(node)
            reason = found if isinstance(found, str) else _obstacle(edited, found)
            if isinstance(found, str) or reason is not None:
                declined.append(Decline(node.name, str(reason), source(node)))
                continue
            _fold(edited, found)
            changed.append(f"{found.norm.name} into {found.affine.name}")
        if not changed:
            return Outcome(program, (), tuple(declined))
        tidy(edited)
        reinfer(edited)
        return Outcome(edited, tuple(changed), tuple(declined))


def _site(norm: Node) -> Site | str:
    """Walk back from a batch norm to the operator that makes its channels, or say why there is none."""
    node, dim = operand(norm), 1
    through: list[Node] = []
    while isinstance(node, Node) and node.target in LAYOUTS:
        before = _carried(node, dim)
        if before is None:
            return f"{node.name} mixes the channels with another axis"
        through.append(node)
        node, dim = operand(node), before
    if not isinstance(node, Node) or node.target not in AFFINES:
        return f"follows {_called(node)}, which has no weight to fold into"
    rank, spatial = value(node).dim(), AFFINES[node.target].spatial
    channels = 1 if spatial is None else rank - spatial - 1
    if dim != channels:
        return f"normalises axis {dim} of {node.name}, whose channels are axis {channels}"
    return Site(norm, node, tuple(through))


def _carried(node: Node, dim: int) -> int | None:
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


def _obstacle(program: Program, site: Site) -> str | None:
    """Return why a site must be left alone, or None."""
    return (
        _norm_obstacle(program, site.norm) or _flow_obstacle(site) or _weight_obstacle(program, site.affine)
    )


def _norm_obstacle(program: Program, norm: Node) -> str | None:
    given = {name: argument(norm, name) for name in NORM_TENSORS}
    if given["running_mean"] is None or given["running_var"] is None:
        return "has no running statistics: it measures each batch, and is no fixed affine map"
    if argument(norm, "training", False):
        return "in training mode: call .eval() before folding"
    for name, node in given.items():
        if node is not None and not _stored(program, node):
            return f"its {name} is computed, not stored"
    if _returns_tuple(norm) and any(user.args[1] != 0 for user in norm.users):
        return "its saved statistics are used"
    return None


def _flow_obstacle(site: Site) -> str | None:
    for node in (site.affine, *site.through):
        if len(node.users) > 1:
            others = ", ".join(sorted(user.name for user in node.users if user is not site.norm))
            return f"the output of {node.name} has other consumers ({others})"
    if value(site.affine).dtype != _normalised(site.norm).dtype:
        return f"{site.affine.name} and the norm compute in different dtypes"
    return None


def _weight_obstacle(program: Program, affine: Node) -> str | None:
    row = AFFINES[affine.target]
    for index, name in ((row.weight, "weight"), (row.bias, "bias")):
        node = operand(affine, index)
        if node is None:
            continue
        if not _stored(program, node):
            return f"the {name} of {affine.name} is computed, not stored"
        if len(node.users) > 1:
            others = ", ".join(sorted(user.name for user in node.users if user is not affine))
            return f"the {name} of {affine.name} is shared ({node.target}, also used by {others})"
    if affine.target == aten.addmm.default:
        if affine.kwargs:
            return f"{affine.name} scales its terms"
        if value(_required(affine)).dim() != 1:
            return f"the bias of {affine.name} is not one number per channel"
    return None


def _fold(program: Program, site: Site) -> None:
    """Rewrite weight and bias of the affine operator, and let the norm's input take the norm's place."""
    norm, affine = site.norm, site.affine
    row = AFFINES[affine.target]
    gamma, beta, mean, var = (_detached(program, argument(norm, name)) for name in NORM_TENSORS)
    assert mean is not None  # _norm_obstacle has looked
    assert var is not None
    folded = batch_norm_as_affine(mean, var, gamma, beta, float(argument(norm, "eps")))

    weight_node, bias_node = _required(affine, row.weight), operand(affine, row.bias)
    weight = tensor(program, weight_node)
    bias = fold_bias(_detached(program, bias_node), folded, weight.dtype)
    set_tensor(program, str(weight_node.target), _scaler(affine)(weight.detach(), folded.scale))
    if bias_node is not None:
        set_tensor(program, str(bias_node.target), bias)
    else:
        name = _bias_name(str(weight_node.target))
        set_arg(affine, row.bias, add_tensor(program, name, bias, trainable=isinstance(weight, nn.Parameter)))
    _bypass(norm)


def _scaler(affine: Node) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that scales this operator's weight along its output channels."""
    row = AFFINES[affine.target]
    if row.mirrored or argument(affine, "transposed", False):
        return partial(scale_transposed, groups=int(argument(affine, "groups")))
    return partial(scale_rows, axis=row.axis)


def _bypass(norm: Node) -> None:
    """Replace a batch norm, or the first value of its tuple, by its input."""
    if _returns_tuple(norm):
        for result in list(norm.users):
            replace_uses(result, _required(norm))
            erase(result)
    else:
        replace_uses(norm, _required(norm))
    erase(norm)


def _bias_name(weight: str) -> str:
    """Return the name of a new bias beside a weight: ``conv.weight`` makes ``conv.bias``."""
    prefix, dot, leaf = weight.rpartition(".")
    return f"{prefix}{dot}{'bias' if leaf == 'weight' else f'{leaf}_bias'}"


def _required(node: Node, index: int = 0) -> Node:
    found = operand(node, index)
    assert found is not None  # every row of the tables points at a tensor
    return found


def _stored(program: Program, node: object) -> bool:
    return isinstance(node, Node) and node.op == "get_attr" and isinstance(tensor(program, node), Tensor)


def _detached(program: Program, node: Node | None) -> Tensor | None:
    return None if node is None else tensor(program, node).detach()


def _returns_tuple(norm: Node) -> bool:
    return isinstance(norm.meta["val"], tuple | list)


def _normalised(norm: Node) -> Tensor:
    first: Tensor = norm.meta["val"][0] if _returns_tuple(norm) else norm.meta["val"]
    return first


def _called(node: object) -> str:
    if not isinstance(node, Node):
        return "a constant"
    return str(node.target) if node.op == "call_function" else f"the {node.op} {node.name}"

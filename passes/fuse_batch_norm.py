"""Fold a batch norm into the convolution, transposed convolution or linear before it.

    y = batch_norm(conv(x, W, b))   =>   y = conv(x, W * scale, b * scale + shift)

with the algebra of `fxcompress.numerics.folding`. Operators between the two may move the channel axis
or flatten others (`linear -> transpose -> batch_norm1d`), as long as the channels stay one axis.

A site is declined, with its reason, where folding would change another result: the weight or the operator's
output is used elsewhere, the norm measures its own batch (training mode, no running statistics), the weight
is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph.edit import erase, replace_uses
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, source, value
from fxcompress.numerics.folding import batch_norm_as_affine, fold_bias
from fxcompress.passes.affine_sites import (
    AFFINES,
    LAYOUTS,
    bias_of,
    carried,
    channel_axis,
    detached,
    is_stored,
    required,
    scaler,
    store,
    weight_obstacle,
    weight_of,
)
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.shape_facts import operand

aten = torch.ops.aten


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
        return outcome(program, edited, changed, declined)


def _site(norm: Node) -> Site | str:
    """Walk back from a batch norm to the operator that makes its channels, or say why there is none."""
    node, dim = operand(norm), 1
    through: list[Node] = []
    while isinstance(node, Node) and node.target in LAYOUTS:
        before = carried(node, dim)
        if before is None:
            return f"{node.name} mixes the channels with another axis"
        through.append(node)
        node, dim = operand(node), before
    if not isinstance(node, Node) or node.target not in AFFINES:
        return f"follows {_called(node)}, which has no weight to fold into"
    channels = channel_axis(node, value(node).dim())
    if dim != channels:
        return f"normalises axis {dim} of {node.name}, whose channels are axis {channels}"
    return Site(norm, node, tuple(through))


def _obstacle(program: Program, site: Site) -> str | None:
    """Return why a site must be left alone, or None."""
    return _norm_obstacle(program, site.norm) or _flow_obstacle(site) or weight_obstacle(program, site.affine)


def _norm_obstacle(program: Program, norm: Node) -> str | None:
    given = {name: argument(norm, name) for name in NORM_TENSORS}
    if given["running_mean"] is None or given["running_var"] is None:
        return "has no running statistics: it measures each batch, and is no fixed affine map"
    if argument(norm, "training", False):
        return "in training mode: call .eval() before folding"
    for name, node in given.items():
        if node is not None and not is_stored(program, node):
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


def _fold(program: Program, site: Site) -> None:
    """Rewrite weight and bias of the affine operator, and let the norm's input take the norm's place."""
    norm, affine = site.norm, site.affine
    gamma, beta, mean, var = (detached(program, argument(norm, name)) for name in NORM_TENSORS)
    assert mean is not None  # _norm_obstacle has looked
    assert var is not None
    folded = batch_norm_as_affine(mean, var, gamma, beta, float(argument(norm, "eps")))

    weight = weight_of(program, affine)
    bias = fold_bias(bias_of(program, affine), folded, weight.dtype)
    store(program, affine, scaler(affine)(weight, folded.scale), bias)
    _bypass(norm)


def _bypass(norm: Node) -> None:
    """Replace a batch norm, or the first value of its tuple, by its input."""
    if _returns_tuple(norm):
        for result in list(norm.users):
            replace_uses(result, required(norm))
            erase(result)
    else:
        replace_uses(norm, required(norm))
    erase(norm)


def _returns_tuple(norm: Node) -> bool:
    return isinstance(norm.meta["val"], tuple | list)


def _normalised(norm: Node) -> Tensor:
    first: Tensor = norm.meta["val"][0] if _returns_tuple(norm) else norm.meta["val"]
    return first


def _called(node: object) -> str:
    if not isinstance(node, Node):
        return "a constant"
    return str(node.target) if node.op == "call_function" else f"the {node.op} {node.name}"

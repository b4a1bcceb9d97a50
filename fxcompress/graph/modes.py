"""Training and evaluation mode of a captured graph: the mode is written in the arguments of the nodes.

`batch_norm(..., training, ...)` and `dropout(x, p, train)` are all that differs between the modes. What a
model does differently in Python (stochastic depth, the `dropout_p` of attention) is fixed at capture.
"""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

MODE_ARGUMENT: dict[object, tuple[int, str]] = {
    aten.batch_norm.default: (5, "training"),
    aten.dropout.default: (2, "train"),
    aten.feature_dropout.default: (2, "train"),
    aten.alpha_dropout.default: (2, "train"),
    aten.feature_alpha_dropout.default: (2, "train"),
    aten.instance_norm.default: (5, "use_input_stats"),
}
"""Operator -> position and name of the argument that tells training from evaluation."""
_NORMS = frozenset({aten.batch_norm.default, aten.instance_norm.default})


def set_training(graph: fx.Graph, training: bool) -> bool:
    """Write the mode into every node that has one; returns whether any node changed."""
    changed = False
    for node in graph.nodes:
        if has_mode(node) and _argument(node) is not training:
            position, name = MODE_ARGUMENT[node.target]
            if position < len(node.args):
                node.update_arg(position, training)
            else:
                node.update_kwarg(name, training)
            changed = True
    return changed


def has_mode(node: fx.Node) -> bool:
    """Whether a node computes something else in training.

    A norm without running statistics uses those of its input in both modes.
    """
    if node.op != "call_function" or node.target not in MODE_ARGUMENT:
        return False
    return node.target not in _NORMS or node.args[3] is not None


def in_training(node: fx.Node) -> bool:
    """Whether a node that has a mode is in training mode."""
    return has_mode(node) and _argument(node) is True


def _argument(node: fx.Node) -> object:
    position, name = MODE_ARGUMENT[node.target]
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)

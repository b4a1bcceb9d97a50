"""Training and evaluation mode of a captured graph: the mode is written in the arguments of the nodes.

`batch_norm(..., training, ...)` and `dropout(x, p, train)` are all that differs between the modes. What a model does
differently in Python (stochastic depth, the `dropout_p` of attention) is fixed at capture.
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


def set_training(graph: fx.Graph, training: bool) -> bool:
    """Write the mode into every node that has one; returns whether any node changed.

    An instance norm without running statistics uses its input's in both modes and is left alone.
    """
    changed = False
    for node in graph.nodes:
        if node.target not in MODE_ARGUMENT or node.op != "call_function":
            continue
        position, name = MODE_ARGUMENT[node.target]
        if node.target is aten.instance_norm.default and node.args[3] is None:
            continue
        if _argument(node, position, name) is not training:
            _write(node, position, name, training)
            changed = True
    return changed


def is_training(graph: fx.Graph) -> bool:
    """Whether any node of the graph is in training mode."""
    return any(
        _argument(node, *MODE_ARGUMENT[node.target]) is True
        for node in graph.nodes
        if node.target in MODE_ARGUMENT
        and not (node.target is aten.instance_norm.default and node.args[3] is None)
    )


def _argument(node: fx.Node, position: int, name: str) -> object:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def _write(node: fx.Node, position: int, name: str, value: bool) -> None:
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)

"""Recurrent layers and cells: the gates of `[G * H, I]` matrices are a factor that stays.

All layers and directions of one operator share the width H, since their states are one tensor `[L, B, H]`.
The hidden size is read off the tensors by the operators themselves, so nothing has to follow.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from fxcompress.axes.expression import Dim, concat
from fxcompress.ops.arguments import arguments
from fxcompress.ops.dimensions.space import Dims, Space, Value

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _gates(node: Node) -> int:
    """How many gates share a matrix, by the operator's name."""
    return _GATES[str(node.target).split(".")[1].removesuffix("_cell")]


def _gated(space: Space, node: Node, tensors: Sequence[Dims], cell: Dim) -> None:
    """The first dimension of matrices and biases: gates outermost, the cell's width within."""
    for dims in tensors:
        steps, inner = space.factor(node, dims[0], [_gates(node), cell.size])
        space.freeze(node, steps, "gates of a recurrent layer")
        space.unify(node, inner, cell)


def _layers(space: Space, node: Node, hidden: Dim, cell: Dim) -> Dim:
    """Relate the matrices of every layer and direction; returns the output's last dimension.

    Args:
        hidden: the width of what is passed on (the projection's, where there is one).
        cell: the width of the gates.
    """
    bound = arguments(node)
    stored = [space.of(tensor) for tensor in bound["params"]]
    directions = 2 if bound["bidirectional"] else 1
    count = len(stored) // (bound["num_layers"] * directions)
    reads = space.of(bound["input"])[-1]
    for layer in range(bound["num_layers"]):
        for place in range(layer * directions, (layer + 1) * directions):
            tensors = stored[place * count : (place + 1) * count]
            if count % 2:
                projection = tensors.pop()
                # The operator tells a projected state by its width being another than the cell's.
                space.freeze(node, cell, "a cell that is wider than its projection")
                space.unify(node, projection[0], hidden)
                space.unify(node, projection[1], cell)
            else:
                space.unify(node, hidden, cell)
            _gated(space, node, tensors, cell)
            space.unify(node, tensors[0][1], reads)
            space.unify(node, tensors[1][1], hidden)
        reads = concat(*[hidden] * directions)
    return reads


def _states(space: Space, node: Node, states: Sequence[Dims]) -> None:
    """`[L, B, H]`: layers stay, the batch is the input's, and so is what is walked along."""
    bound = arguments(node)
    x = space.of(bound["input"])
    batch, time = (0, 1) if bound["batch_first"] else (1, 0)
    space.freeze(node, x[time], "walked along")
    for state in states:
        space.freeze(node, state[0], "layers and directions")
        space.unify(node, state[1], x[batch])


def lstm(space: Space, node: Node) -> Value:
    """x[.., I], h[L, B, P], c[L, B, H] => y[.., P] (or both directions side by side), h, c."""
    bound = arguments(node)
    h, c = (space.of(state) for state in bound["hx"])
    _states(space, node, (h, c))
    output = _layers(space, node, h[-1], c[-1])
    return [(*space.of(bound["input"])[:-1], output), h, c]


def recurrent(space: Space, node: Node) -> Value:
    """`gru` and `rnn`: x[.., I], h[L, B, H] => y[.., H] (or both directions side by side), h."""
    bound = arguments(node)
    h = space.of(bound["hx"])
    _states(space, node, (h,))
    output = _layers(space, node, h[-1], h[-1])
    return [(*space.of(bound["input"])[:-1], output), h]


def cell(space: Space, node: Node) -> Value:
    """One step: x[B, I], h[B, H] => h[B, H]; of an LSTM with the cell's state beside it."""
    bound = arguments(node)
    several = isinstance(bound["hx"], list | tuple)
    states = [space.of(state) for state in (bound["hx"] if several else [bound["hx"]])]
    x, h = space.of(bound["input"]), states[0]
    for state in states:
        for mine, other in zip(state, (*x[:-1], h[-1]), strict=True):
            space.unify(node, mine, other)
    tensors = [space.of(bound[name]) for name in ("w_ih", "w_hh", "b_ih", "b_hh") if bound[name] is not None]
    space.unify(node, tensors[0][1], x[-1])
    space.unify(node, tensors[1][1], h[-1])
    _gated(space, node, tensors, h[-1])
    return states if several else h

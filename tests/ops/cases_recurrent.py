"""Recurrent layers and cells, gates and all."""

from __future__ import annotations

from typing import Any

from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

RECURRENT = Cases()
case = RECURRENT.case


def parameters(
    net: Net, gates: int, sizes: list[int], directions: int, *, bias: bool = True
) -> list[fx.Node]:
    """Matrices (and biases) of layers `sizes[0] -> sizes[1] -> ..`, each in every direction."""
    made: list[fx.Node] = []
    for layer, width in enumerate(sizes[1:]):
        inputs = sizes[layer] * (directions if layer else 1)
        for _ in range(directions):
            made += [net.parameter(gates * width, inputs), net.parameter(gates * width, width)]
            made += [net.parameter(gates * width), net.parameter(gates * width)] if bias else []
    return made


def zeros(net: Net, layers: int, batch: Any, width: int) -> fx.Node:
    return net(aten.zeros.default, [layers, batch, width])


@case(5, 6, dynamic=True)
def lstm(net: Net) -> fx.Node:
    """Two layers in both directions; the initial states are made to measure."""
    x = net.features(4, width=5)
    states = [zeros(net, 4, net.size(x, 0), 6) for _ in range(2)]
    y = net(aten.lstm.input, x, states, parameters(net, 4, [5, 6, 6], 2), True, 2, 0.0, False, True, True)
    return net.read(net.item(y, 0))


@case(3, 5)
def lstm_with_a_projection(net: Net) -> fx.Node:
    """The operator knows a projection by its narrower state, so the cell's width stays above it."""
    x = net.features(4, width=5)
    states = [zeros(net, 1, 2, width) for width in (3, 6)]
    matrices = [net.parameter(24, 5), net.parameter(24, 3), net.parameter(3, 6)]
    y = net(aten.lstm.input, x, states, matrices, False, 1, 0.0, False, False, True)
    return net.read(net.item(y, 0))


@case(6)
def lstm_states(net: Net) -> fx.Node:
    """Both final states are read, and the first cell state is stored."""
    x = net.input(4, 5)
    states = [zeros(net, 1, 2, 6), net(aten.expand.default, net.parameter(1, 1, 6), [1, 2, 6])]
    y = net(aten.lstm.input, x, states, parameters(net, 4, [5, 6], 1), True, 1, 0.0, False, False, True)
    both = net(aten.cat.default, [net.item(y, 1), net.item(y, 2)], 2)
    return net.read(net(aten.transpose.int, both, 0, 1))


@case(5, 6)
def gru(net: Net) -> fx.Node:
    """Time first. The batch is fixed: torch infers each step on its own, and symbols make that slow."""
    x = net.features(4, width=5)
    state = zeros(net, 2, 2, 6)
    time_first = net(aten.transpose.int, x, 0, 1)
    y = net(
        aten.gru.input, time_first, state, parameters(net, 3, [5, 6], 2), True, 1, 0.0, False, True, False
    )
    return net.read(net(aten.transpose.int, net.item(y, 0), 0, 1))


@case(5, 6)
def plain_recurrence(net: Net) -> fx.Node:
    """No gates; two nonlinearities, one behind the other."""
    x = net.features(4, width=5)
    first = parameters(net, 1, [5, 6, 6], 1, bias=False)
    y = net(aten.rnn_tanh.input, x, zeros(net, 2, 2, 6), first, False, 2, 0.0, False, False, True)
    second = parameters(net, 1, [6, 6], 1)
    state = net.item(y, 1)
    state = net(aten.slice.Tensor, state, 0, 1, 2)
    y = net(aten.rnn_relu.input, net.item(y, 0), state, second, True, 1, 0.0, False, False, True)
    return net.read(net.item(y, 0))


@case()
def a_state_that_is_an_input(net: Net) -> fx.Node:
    """Its width cannot change, and with it no width of the layer."""
    x = net.input(4, 5)
    state = net(aten.transpose.int, net.input(1, 6), 0, 1)
    y = net(aten.gru.input, x, state, parameters(net, 3, [5, 6], 1), True, 1, 0.0, False, False, True)
    return net.read(net.item(y, 0))


@case(5, 6, 7, dynamic=True)
def cells(net: Net) -> fx.Node:
    """Two steps of an LSTM, then one of each other cell."""
    x = net.features(width=5)
    batch = net.size(x, 0)
    matrices = [net.parameter(28, 5), net.parameter(28, 7), net.parameter(28), net.parameter(28)]
    h = c = net(aten.zeros.default, [batch, 7])
    for _ in range(2):
        y = net(aten.lstm_cell.default, x, [h, c], *matrices)
        h, c = net.item(y, 0), net.item(y, 1)
    x = net(aten.add.Tensor, h, c)
    y = net(aten.zeros.default, [batch, 6])
    gates = {aten.gru_cell.default: 3, aten.rnn_tanh_cell.default: 1, aten.rnn_relu_cell.default: 1}
    for target, count in gates.items():
        stored = [net.parameter(count * 6, 7), net.parameter(count * 6, 6)]
        y = net(target, x, y, *stored, net.parameter(count * 6), net.parameter(count * 6))
    return net.read(y)

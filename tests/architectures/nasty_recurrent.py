"""Recurrent layers, scans and cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.nasty import Ideas

RECURRENT = Ideas()
idea = RECURRENT.idea

SEQUENCE = (5, 4)


def around(layer: nn.Module, width: int) -> dict[str, Any]:
    return {"enter": nn.Linear(4, 6), "layer": layer, "head": nn.Linear(width, 3)}


@idea(lambda: around(nn.LSTM(6, 8, batch_first=True), 8), SEQUENCE, sizes=(6, 8))
def lstm(m: Any, x: Tensor) -> Tensor:
    """Four gates in one matrix; hidden and cell state start at zero."""
    return m.head(m.layer(m.enter(x))[0])


@idea(lambda: around(nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True), 16), SEQUENCE, sizes=(6, 8))
def lstm_deep_and_both_ways(m: Any, x: Tensor) -> Tensor:
    """The second layer reads both directions side by side, and so does the head."""
    return m.head(m.layer(m.enter(x))[0])


@idea(lambda: around(nn.LSTM(6, 8, 2, batch_first=True, bias=False), 8), SEQUENCE, sizes=(6, 8))
def lstm_last_state(m: Any, x: Tensor) -> Tensor:
    """Only the last layer's final state is read."""
    return m.head(m.layer(m.enter(x))[1][0][-1])


@idea(
    lambda: around(nn.LSTM(6, 8, batch_first=True, proj_size=4), 4),
    SEQUENCE,
    sizes=(4, 6),
)
def lstm_projected(m: Any, x: Tensor) -> Tensor:
    """The output is narrower than the cell."""
    return m.head(m.layer(m.enter(x))[0])


@idea(
    lambda: {
        **around(nn.LSTM(6, 8, batch_first=True), 8),
        "h": nn.Linear(4, 8),
        "c": nn.Parameter(torch.randn(1, 1, 8)),
    },
    SEQUENCE,
    sizes=(6, 8),
)
def lstm_initial_states(m: Any, x: Tensor) -> Tensor:
    """One initial state is computed, the other learned."""
    h, c = torch.tanh(m.h(x[:, 0]))[None], m.c.expand(1, x.shape[0], 8).contiguous()
    return m.head(m.layer(m.enter(x), (h, c))[0])


@idea(lambda: around(nn.GRU(6, 8, batch_first=True), 8), SEQUENCE, sizes=(6, 8))
def gru(m: Any, x: Tensor) -> Tensor:
    """Three gates in one matrix."""
    return m.head(m.layer(m.enter(x))[0])


@idea(lambda: around(nn.GRU(6, 8, 2, bidirectional=True), 16), SEQUENCE, sizes=(6, 8))
def gru_time_first(m: Any, x: Tensor) -> Tensor:
    """Time before batch, two layers, both directions."""
    return m.head(m.layer(m.enter(x).transpose(0, 1))[0].transpose(0, 1))


@idea(lambda: around(nn.RNN(6, 8, 2, bidirectional=True, batch_first=True), 16), SEQUENCE, sizes=(6, 8))
def rnn(m: Any, x: Tensor) -> Tensor:
    """No gates."""
    return m.head(m.layer(m.enter(x))[0])


@idea(lambda: around(nn.RNN(6, 8, nonlinearity="relu", batch_first=True), 8), SEQUENCE, sizes=(6, 8))
def rnn_relu(m: Any, x: Tensor) -> Tensor:
    """The other nonlinearity is another operator."""
    return m.head(m.layer(m.enter(x))[0])


@idea(
    lambda: {"cell": nn.LSTMCell(4, 8), "head": nn.Linear(8, 3)},
    SEQUENCE,
    sizes=(8,),
)
def lstm_cell(m: Any, x: Tensor) -> Tensor:
    """A loop in Python over a cell, unrolled by the capture."""
    h = c = torch.zeros(x.shape[0], 8)
    for step in x.unbind(1):
        h, c = m.cell(step, (h, c))
    return m.head(h)


@idea(
    lambda: {"cell": nn.GRUCell(4, 8), "head": nn.Linear(8, 3)},
    SEQUENCE,
    sizes=(8,),
)
def gru_cell(m: Any, x: Tensor) -> Tensor:
    """The same with three gates and one state."""
    h = torch.zeros(x.shape[0], 8)
    for step in range(5):
        h = m.cell(x[:, step], h)
    return m.head(h)


@idea(
    lambda: {"conv": nn.Conv2d(3 + 4, 16, 3, padding=1), "head": nn.Conv2d(4, 2, 1)}, (3, 3, 4, 4), sizes=(4,)
)
def convolutional_lstm(m: Any, x: Tensor) -> Tensor:
    """Gates are channels of one convolution over input and state side by side."""
    h = c = torch.zeros(x.shape[0], 4, 4, 4)
    for step in x.unbind(1):
        i, f, g, o = m.conv(torch.cat([step, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return m.head(h)


@idea(
    lambda: {
        "enter": nn.Linear(4, 12),
        "conv": nn.Conv1d(6, 6, 3, padding=2, groups=6),
        "bcd": nn.Linear(6, 2 + 3 + 3),
        "dt": nn.Linear(2, 6),
        "a": nn.Parameter(torch.randn(6, 3)),
        "d": nn.Parameter(torch.ones(6)),
        "head": nn.Linear(6, 3),
    },
    SEQUENCE,
    sizes=(2, 3, 6),
)
def selective_scan(m: Any, x: Tensor) -> Tensor:
    """Mamba: a causal depthwise convolution, a state per channel, everything input-dependent."""
    x, gate = m.enter(x).chunk(2, -1)
    x = F.silu(m.conv(x.transpose(1, 2))[..., :5].transpose(1, 2))
    dt, b, c = m.bcd(x).split([2, 3, 3], -1)
    dt = F.softplus(m.dt(dt))
    decay = torch.exp(dt[..., None] * -m.a.exp())
    drive = (dt * x)[..., None] * b[:, :, None]
    state, outputs = torch.zeros(x.shape[0], 6, 3), []
    for step in range(5):
        state = decay[:, step] * state + drive[:, step]
        outputs.append((state * c[:, step, None]).sum(-1))
    return m.head((torch.stack(outputs, 1) + m.d * x) * F.silu(gate))

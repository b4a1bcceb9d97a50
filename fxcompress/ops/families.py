"""Operators that every table has the same row for: one idea under several overloads."""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

CONVOLUTIONS: tuple[Any, ...] = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
)
TRANSPOSED: tuple[Any, ...] = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
RECURRENT: tuple[Any, ...] = (
    aten.lstm.input,
    aten.gru.input,
    aten.rnn_tanh.input,
    aten.rnn_relu.input,
)
"""Whole sequences, all layers and directions in one call."""

CELLS: tuple[Any, ...] = (
    aten.lstm_cell.default,
    aten.gru_cell.default,
    aten.rnn_tanh_cell.default,
    aten.rnn_relu_cell.default,
)
"""One step."""

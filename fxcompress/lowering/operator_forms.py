"""Operators that torch's exporter has no right ONNX form for, written in operators that it has one for.

    cdist                    =>  differences and their norm, or one matrix product
    embedding_bag            =>  embedding and a sum per bag
    lstm_cell, gru_cell, ..  =>  linear, split, sigmoid, tanh
    lstm with a projection   =>  its cells, one after the other (ONNX's LSTM has no projection)
    adaptive_avg_pool1d to 1 =>  mean
    avg_pool2d over everything => mean
    scaled_dot_product_attention not of four dimensions  =>  of four, or products and a softmax

The exporter of torch 2.13 has no `cdist`, writes an `embedding_bag` whose nodes are not in order, takes cells
apart with the batch of the example, writes an LSTM with a projection as one without and windows that are
larger than the image (OpenVINO refuses them), and refuses attention over anything but [batch, heads,
positions, width]. A *form* is a plain function from an operator's arguments to its results; it must not take
a size that may vary for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxcompress.errors import LoweringError
from fxcompress.graph import walk
from fxcompress.lowering.bag_forms import bags, has_form
from fxcompress.ops.arguments import arguments
from fxcompress.ops.pooling import not_over_everything

aten = torch.ops.aten

Given = Mapping[str, Any]
"""The arguments of an operator by their names in its schema, with tensors for nodes."""

Form = Callable[[fx.Node, Given], Any]

UNROLLED = 512
"""The most cells that an LSTM is taken apart into: each is some twenty ONNX nodes."""

_FEW = 25
"""Where PyTorch itself turns from differences to a matrix product for Euclidean distances."""


def cdist(_: fx.Node, given: Given) -> Tensor:
    """x[.., P, M], y[.., R, M] => d[.., P, R], the p-norm of every difference."""
    x1, x2, p, mode = given["x1"], given["x2"], given["p"], given["compute_mode"]
    many = x1.shape[-2] > _FEW or x2.shape[-2] > _FEW
    if p == 2 and (mode == 1 or (not mode and many)):
        return _by_product(x1, x2)
    return _norm((x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs(), p)


def _norm(apart: Tensor, p: float) -> Tensor:
    """The p-norm over the last dimension of what is not negative."""
    if p == 0:
        return (apart != 0).to(apart.dtype).sum(-1)
    if p == 1:
        return apart.sum(-1)
    if p == 2:
        return (apart * apart).sum(-1).sqrt()
    if p == float("inf"):
        return apart.amax(-1)
    return apart.pow(p).sum(-1).pow(1 / p)


def _by_product(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 = |x|^2 - 2 x y + |y|^2 as one product of widened matrices, the way PyTorch computes it."""
    squares_x, squares_y = (x * x).sum(-1, keepdim=True), (y * y).sum(-1, keepdim=True)
    left = torch.cat([x * -2, squares_x, torch.ones_like(squares_x)], -1)
    right = torch.cat([y, torch.ones_like(squares_y), squares_y], -1)
    return torch.matmul(left, right.transpose(-2, -1)).clamp_min(0).sqrt()


def lstm_cell(_: fx.Node, given: Given) -> tuple[Tensor, Tensor]:
    """One step: x[B, I], h[B, H], c[B, H] => h, c."""
    h, c = given["hx"]
    return _lstm_step(*_gates(given, h), c)


def _gates(given: Given, h: Tensor) -> tuple[Tensor, Tensor]:
    """What the input and the hidden state say to all gates of a cell."""
    return (
        F.linear(given["input"], given["w_ih"], given["b_ih"]),
        F.linear(h, given["w_hh"], given["b_hh"]),
    )


def _lstm_step(of_x: Tensor, of_h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = torch.chunk(of_x + of_h, 4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(_: fx.Node, given: Given) -> Tensor:
    """One step: x[B, I], h[B, H] => h."""
    h: Tensor = given["hx"]
    of_x, of_h = _gates(given, h)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = torch.chunk(of_x, 3, -1), torch.chunk(of_h, 3, -1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return n + z * (h - n)


def rnn_tanh_cell(_: fx.Node, given: Given) -> Tensor:
    """tanh(w x + b + v h + d)"""
    of_x, of_h = _gates(given, given["hx"])
    return (of_x + of_h).tanh()


def rnn_relu_cell(_: fx.Node, given: Given) -> Tensor:
    """relu(w x + b + v h + d)"""
    of_x, of_h = _gates(given, given["hx"])
    return (of_x + of_h).relu()


def projected_lstm(_: fx.Node, given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM of cells whose hidden state is multiplied by one more matrix, in evaluation mode."""
    time = 1 if given["batch_first"] else 0
    directions = 2 if given["bidirectional"] else 1
    cells = given["num_layers"] * directions
    per_cell = len(given["params"]) // cells
    steps: list[Tensor] = list(given["input"].unbind(time))
    both: list[list[Tensor]] = []
    last: list[tuple[Tensor, Tensor]] = []
    for place in range(cells):
        own = given["params"][place * per_cell : (place + 1) * per_cell]
        order = -1 if place % directions else 1
        states, h, c = _walk(steps[::order], given["hx"][0][place], given["hx"][1][place], own)
        both.append(states[::order])
        last.append((h, c))
        if len(both) == directions:
            steps = [torch.cat(pair, -1) for pair in zip(*both, strict=True)] if order < 0 else states
            both = []
    return torch.stack(steps, time), torch.stack([h for h, _ in last]), torch.stack([c for _, c in last])


def _walk(
    steps: Sequence[Tensor], h: Tensor, c: Tensor, params: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The hidden state after each step, and both states after the last.

    Args:
        params: the matrices of input and state, their biases where there are any, and the projection.
    """
    w_ih, w_hh, *biases, projection = params
    b_ih, b_hh = biases or (None, None)
    states = []
    for step in steps:
        wide, c = _lstm_step(F.linear(step, w_ih, b_ih), F.linear(h, w_hh, b_hh), c)
        h = F.linear(wide, projection)
        states.append(h)
    return states, h, c


def _is_projected(node: fx.Node) -> bool:
    """Whether an LSTM is one that needs a form.

    Raises:
        LoweringError: it is, but has more cells than are written. (Capture fixes the number of steps.)
    """
    bound = arguments(node)
    h, c = (walk.value(state) for state in bound["hx"])
    if h.shape[-1] == c.shape[-1]:
        return False
    steps = walk.value(bound["input"]).shape[1 if bound["batch_first"] else 0]
    cells = steps * bound["num_layers"] * (2 if bound["bidirectional"] else 1)
    if cells > UNROLLED:
        raise LoweringError(
            f"the LSTM of ONNX has no projection, and this one is {cells} cells, "
            f"of at most {UNROLLED} that are written one by one",
            hint="use an LSTM without proj_size, or a shorter sequence",
            node=node.format_node(),
            source=walk.source(node),
        )
    return True


def mean_of_positions(_: fx.Node, given: Given) -> Tensor:
    """x[.., L] => y[.., 1]; torch takes it apart into a pooling of images whose parts have no ONNX form."""
    mean: Tensor = given["self"].mean(-1, keepdim=True)
    return mean


def mean_of_image(_: fx.Node, given: Given) -> Tensor:
    """x[N, C, H, W] => y[N, C, 1, 1]."""
    mean: Tensor = given["self"].mean((-2, -1), keepdim=True)
    return mean


def _pools_everything(node: fx.Node) -> bool:
    return not_over_everything(node) is None


def _pools_to_one(node: fx.Node) -> bool:
    return list(arguments(node)["output_size"]) == [1]


def hard_sigmoid(_: fx.Node, given: Given) -> Tensor:
    """X => clamp(x / 6 + 1/2, 0, 1); onnxruntime computes the operator in float32 and shorter alone."""
    gate: Tensor = (given["self"] / 6 + 0.5).clamp(0.0, 1.0)
    return gate


def hard_swish(node: fx.Node, given: Given) -> Tensor:
    """X => x * hardsigmoid(x)."""
    result: Tensor = given["self"] * hard_sigmoid(node, given)
    return result


def _is_double(node: fx.Node) -> bool:
    return walk.dtype(node) == torch.float64


def attention(_: fx.Node, given: Given) -> Tensor:
    """q[.., L, E], k[.., S, E], v[.., S, F] => y[.., L, F]; fewer than four dimensions are one batch."""
    query, key, value = given["query"], given["key"], given["value"]
    if query.dim() > 4 or key.dim() > 4 or value.dim() > 4:
        return _attention_in_parts(query, key, value, given)
    added = 4 - max(query.dim(), key.dim(), value.dim())
    query, key, value = (x[(None,) * (4 - x.dim())] for x in (query, key, value))
    options = {name: given[name] for name in ("attn_mask", "is_causal", "scale")}
    result = F.scaled_dot_product_attention(query, key, value, **options)
    return result.squeeze(tuple(range(added)))


def _attention_in_parts(query: Tensor, key: Tensor, value: Tensor, given: Given) -> Tensor:
    """The same with more dimensions, which torch's operator computes in this way too."""
    scale = query.shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    scores, mask = query @ key.transpose(-2, -1) * scale, given["attn_mask"]
    if given["is_causal"]:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1)
    if mask is not None:  # a row that sees nothing gives zeros
        weights = weights.masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)
    return weights @ value


def _is_not_of_heads(node: fx.Node) -> bool:
    """Whether attention is over other than four dimensions; grouped heads have four, or no form."""
    bound = arguments(node)
    ranks = [walk.value(bound[name]).dim() for name in ("query", "key", "value")]
    return not bound["enable_gqa"] and ranks != [4, 4, 4]


FORMS: Mapping[Any, Form] = {
    aten.scaled_dot_product_attention.default: attention,
    aten.hardsigmoid.default: hard_sigmoid,
    aten.hardswish.default: hard_swish,
    aten.adaptive_avg_pool1d.default: mean_of_positions,
    aten.avg_pool2d.default: mean_of_image,
    aten.cdist.default: cdist,
    aten._cdist_forward.default: cdist,
    aten.embedding_bag.default: bags,
    aten.embedding_bag.padding_idx: bags,
    aten._embedding_bag.default: bags,
    aten._embedding_bag_forward_only.default: bags,
    aten.lstm_cell.default: lstm_cell,
    aten.gru_cell.default: gru_cell,
    aten.rnn_tanh_cell.default: rnn_tanh_cell,
    aten.rnn_relu_cell.default: rnn_relu_cell,
    aten.lstm.input: projected_lstm,
}


def form_of(node: fx.Node) -> Form | None:
    """What to write in the place of an operator; None where the exporter knows better.

    Raises:
        LoweringError: an operator whose form does not cover this use, nor does the exporter.
    """
    form = FORMS.get(node.target)
    covers = _COVERS.get(form) if form is not None else None
    return form if covers is None or covers(node) else None


_COVERS: Mapping[Form, Callable[[fx.Node], bool]] = {
    projected_lstm: _is_projected,
    bags: has_form,
    mean_of_positions: _pools_to_one,
    mean_of_image: _pools_everything,
    attention: _is_not_of_heads,
    hard_sigmoid: _is_double,
    hard_swish: _is_double,
}
"""Which uses of an operator a form is for, where it is not for all."""

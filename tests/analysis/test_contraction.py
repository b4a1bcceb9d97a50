"""Operators read as matrix products: rows times the matrix is what the operator computes, and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxcompress.analysis.contraction import Form, form
from tests.ops.building import Net, aten

LAYERS = {
    "linear": (nn.Linear(5, 7), (3, 5)),
    "linear on tokens": (nn.Linear(5, 7), (2, 4, 5)),
    "1d, same padding, depthwise": (nn.Conv1d(4, 4, 4, padding="same", groups=4), (2, 4, 9)),
    "2d, strided, dilated, grouped": (nn.Conv2d(4, 6, 3, 2, 1, dilation=2, groups=2), (2, 4, 9, 8)),
    "2d, valid": (nn.Conv2d(3, 2, (3, 2), padding="valid"), (2, 3, 6, 5)),
    "3d": (nn.Conv3d(2, 3, (3, 2, 1), padding=1), (2, 2, 4, 4, 3)),
    "transposed 1d, dilated": (nn.ConvTranspose1d(4, 6, 4, 3, 1, dilation=2), (2, 4, 5)),
    "transposed 2d, grouped": (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), (2, 4, 5, 6)),
    "transposed 2d, cropped": (nn.ConvTranspose2d(2, 3, 2, 1, 2), (2, 2, 6, 6)),
}
OVERLOADS = {
    nn.Linear: aten.linear.default,
    nn.Conv1d: aten.conv1d.default,
    nn.Conv2d: aten.conv2d.default,
    nn.Conv3d: aten.conv3d.default,
    nn.ConvTranspose1d: aten.conv_transpose1d.default,
    nn.ConvTranspose2d: aten.conv_transpose2d.input,
}


def read(layer: nn.Module, shape: tuple[int, ...]) -> Form:
    """The layer as one operator of a graph, and its form."""
    net = Net()
    x = net.input(*shape[1:])
    weight, bias = (net.parameter(value=value.detach()) for value in (layer.weight, layer.bias))
    if isinstance(layer, nn.Linear):
        node = net(aten.linear.default, x, weight, bias)
    elif isinstance(layer.padding, str):
        overload = {1: aten.conv1d.padding, 2: aten.conv2d.padding}[len(layer.kernel_size)]
        node = net(overload, x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    elif layer.transposed:
        extra = (layer.output_padding, layer.groups, layer.dilation)
        node = net(OVERLOADS[type(layer)], x, weight, bias, layer.stride, layer.padding, *extra)
    else:
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        node = net(OVERLOADS[type(layer)], x, weight, bias, *options)
    program = net.program(node)
    found = form(next(n for n in program.graph.nodes if n.op == "call_function"))
    assert isinstance(found, Form)
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_rows_times_the_matrix_is_what_the_operator_yields(layer: nn.Module, shape: tuple[int, ...]) -> None:
    found = read(layer, shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twin = layer.double()
    y, weight = twin(x).detach(), twin.weight.detach()
    places = torch.arange(found.places(y)).flip(0)[::2]
    made = found.rows(x, places) @ found.matrix(weight)
    made = made + twin.bias.detach().reshape(found.groups, 1, -1)
    wanted = found.picked(y, places)
    assert made.shape == wanted.shape
    assert float((made - wanted).abs().max()) < 1e-12
    assert torch.equal(found.stored(found.matrix(weight), weight), weight)


def test_products_with_a_stored_matrix() -> None:
    net = Net()
    x = net.input(5)
    y = net(aten.addmm.default, net.parameter(4), x, net.parameter(5, 4))
    y = net(aten.mm.default, y, net.parameter(4, 3))
    program = net.program(net(aten.matmul.default, y, net.parameter(3, 2)))
    forms = [form(node) for node in program.graph.nodes if node.op == "call_function"]
    assert [isinstance(found, Form) and found.bias is not None for found in forms] == [True, False, False]
    weight = torch.randn(5, 4)
    assert torch.equal(forms[0].matrix(weight)[0], weight)
    assert torch.equal(forms[0].stored(forms[0].matrix(weight), weight), weight)


def test_what_cannot_be_read_so_says_why() -> None:
    net = Net()
    x = net.input(4, 4)
    weight = net.parameter(4, 4)
    turned = net(aten.linear.default, x, net(aten.neg.default, weight))
    left = net(aten.matmul.default, net.parameter(4, 4), turned)
    scaled = net(aten.matmul.default, left, left)
    program = net.program(net(aten.tanh.default, scaled))
    reasons = [form(node) for node in program.graph.nodes if node.op == "call_function"]
    assert reasons == [
        None,
        "its weight is computed, not stored",
        "its stored operand is not a matrix on the right",
        None,
        None,
    ]

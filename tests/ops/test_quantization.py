"""The role table is consistent with the schemas of the operators it names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxcompress.graph.capture import capture
from fxcompress.ops.quantization import GATES, ROLES, Kind, activations, rectifier_bounds, role
from tests.passes.models import Apply


@pytest.mark.parametrize("target", ROLES, ids=str)
def test_operands_are_arguments_of_the_operator(target):
    row = ROLES[target]
    names = {argument.name for argument in target._schema.arguments}
    wanted = {*row.activations, *(name for name in (row.weight, row.bias) if name is not None)}
    assert wanted <= names


def test_gates_are_gates():
    assert {target for target, row in ROLES.items() if row.kind is Kind.GATE} == set(GATES)
    x = torch.linspace(-5, 5, 101)
    for target, gate in GATES.items():
        torch.testing.assert_close(x * gate(x), target(x))


def test_the_operands_of_a_concatenation_are_its_list():
    program = capture(Apply(lambda model, x: torch.cat([x, x * 2, x], 1)), (torch.randn(2, 3),))
    node = next(node for node in program.graph.nodes if node.target is torch.ops.aten.cat.default)
    row = role(node)
    assert row is not None
    assert [source.name for source in activations(node, row)] == ["x", "mul", "x"]


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (torch.relu, (0.0, float("inf"))),
        (nn.functional.relu6, (0.0, 6.0)),
        (lambda x: nn.functional.hardtanh(x, -2.0, 3.0), (-2.0, 3.0)),
        (lambda x: x.clamp(0, 1), (0.0, 1.0)),
        (lambda x: x.clamp(max=4.0), (float("-inf"), 4.0)),
        (lambda x: x.clamp_min(0.0), (0.0, float("inf"))),
    ],
)
def test_rectifier_bounds(function, bounds):
    program = capture(Apply(lambda model, x: function(x)), (torch.randn(2, 3),))
    node = next(node for node in program.graph.nodes if (row := role(node)) and row.kind is Kind.RECTIFY)
    assert rectifier_bounds(node) == bounds


def test_inputs_parameters_and_strangers_have_no_role():
    program = capture(Apply(lambda model, x: torch.erfinv(x)), (torch.rand(2, 3),))
    assert [role(node) for node in program.graph.nodes] == [None] * len(program.graph.nodes)

"""What files hold, and what changed between two, for programs and for ONNX models."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import nn

from fxcompress.analysis.groups import analyse
from fxcompress.graph.capture import capture
from fxcompress.graph.edit import set_tensor
from fxcompress.graph.program import Program
from fxcompress.report import difference, listings
from fxcompress.report.contents import of_onnx, of_program
from fxcompress.runtime.inspection import executed


def render(view: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return console.file.getvalue()


def program() -> Program:
    return capture(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval(), torch.randn(2, 3, 8, 8)
    )


def onnx_model(width: int = 4, extra: bool = False) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(3 * width, dtype=np.float32).reshape(3, width), "weight")
    codes = numpy_helper.from_array(np.ones(36, dtype=np.int8), "codes")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"], name="matmul")]
    if extra:
        nodes.append(helper.make_node("Relu", ["y"], ["z"], name="relu"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("z" if extra else "y", TensorProto.FLOAT, ["batch", width])],
        [weight, codes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_program_contents() -> None:
    contents = of_program(program())
    assert contents.by_operator() == {"conv2d": 2, "relu": 1}
    assert str(contents.tensors["0.weight"]) == "float32[16, 3, 3, 3]"
    assert contents.elements == 16 * 27 + 16 + 8 * 144 + 8
    assert contents.bytes == 4 * contents.elements
    assert contents.integer_share == 0
    assert list(contents.inputs.values()) == ["f32[batch, 3, 8, 8]"]


def test_onnx_contents() -> None:
    contents = of_onnx(onnx_model())
    assert contents.by_operator() == {"MatMul": 1}
    assert contents.inputs == {"x": "float32[batch, 3]"}
    assert contents.bytes == 48 + 36
    assert contents.integer_share == 36 / 84
    assert contents.facts["opset"] == "ai.onnx 20"


def test_a_file_does_not_differ_from_itself() -> None:
    contents = of_program(program())
    assert difference.compare(contents, contents).empty
    assert "same" in render(difference.view(difference.compare(contents, contents)))


def test_changed_values_are_seen_although_the_type_is_the_same() -> None:
    before = program()
    after = before.copy()
    set_tensor(after, "0.bias", torch.zeros(16))
    found = difference.compare(of_program(before), of_program(after))
    assert found.revalued == ("0.bias",)
    assert not found.empty
    assert not found.reshaped


def test_difference_of_onnx_models() -> None:
    found = difference.compare(of_onnx(onnx_model()), of_onnx(onnx_model(6, extra=True)), {"file": (100, 50)})
    assert [str(side) for side in found.reshaped["weight"]] == ["float32[3, 4]", "float32[3, 6]"]
    assert found.operators == {"Relu": (0, 1)}
    assert found.nodes_added == ("relu",)
    assert found.nodes_removed == ()
    text = render(difference.view(found), 80)
    assert "float32[3, 6]" in text
    assert "0.500x" in text
    assert found.to_dict()["costs"]["file"] == {"a": 100, "b": 50}


def test_what_is_stored_as_integers_is_another_type_of_the_same_tensor() -> None:
    before, after = of_program(program()), of_program(program())
    changed = dataclasses.replace(
        after, tensors={f"{name}_int8": tensor for name, tensor in after.tensors.items()}
    )
    found = difference.compare(before, changed)
    assert set(found.reshaped) == set(before.tensors)
    assert not found.added
    assert not found.removed


def test_a_program_and_an_onnx_file_are_compared_by_tensors_only() -> None:
    found = difference.compare(of_program(program()), of_onnx(onnx_model()))
    assert not found.operators
    assert not found.nodes_added
    assert set(found.added) == {"weight", "codes"}
    assert len(found.removed) == 4


def test_program_view_names_groups_frozen_axes_and_costs() -> None:
    analysis = analyse(program())
    text = render(
        listings.program_view(analysis.program, analysis, of_program(analysis.program), graph=True), 80
    )
    for word in ("0.weight[0]", "conv2d", "a model output", "2.weight[1]", "MACs per sample"):
        assert word in text, word
    assert max(len(line) for line in render(listings.groups(analysis), 80).splitlines()) <= 80
    data = listings.program_dict(analysis.program, analysis, of_program(analysis.program))
    assert data["groups"][0]["size"] == 16
    assert data["cost"]["macs"] == 16 * 27 * 36 + 8 * 144 * 16
    assert any(entry["axis"] == "2.weight[0]" for entry in data["frozen"])


def test_onnx_view_shows_what_is_executed() -> None:
    model = onnx_model(extra=True)
    text = render(listings.onnx_view(of_onnx(model), executed(model), 123), 80)
    for word in ("MatMul", "as executed", "123 B", "42.9 %", "x: float32[batch, 3]"):
        assert word in text, word
    data = listings.onnx_dict(of_onnx(model), executed(model), 123)
    assert data["file_bytes"] == 123
    assert all(entry["integer"] is False for entry in data["executed"])

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fxcompress.runtime.inspection import executed, executor_of
from fxcompress.runtime.session import SessionError
from tests.runtime.models import quantized_conv, scale


@pytest.fixture(scope="module")
def operators() -> dict[str, object]:
    return {operator.op_type: operator for operator in executed(quantized_conv())}


def test_a_quantized_convolution_is_one_integer_operator() -> None:
    found = executed(quantized_conv())
    (conv,) = [operator for operator in found if operator.op_type == "QLinearConv"]
    assert conv.integer
    assert {"xd", "wd", "conv", "relu", "rq"} <= set(conv.covers)


def test_every_value_is_covered_and_the_rest_is_float() -> None:
    model = quantized_conv()
    executors = executor_of(executed(model))
    made = {name for node in model.graph.node for name in node.output}
    assert made - set(executors) <= {"rd", "flat"}, "only what the runtime moved or merged"
    assert executors["xq"].op_type == "QuantizeLinear"
    assert not executors["xq"].integer
    assert not executors["y"].integer


def test_the_same_graph_without_quantization_is_float() -> None:
    model = quantized_conv()
    nodes = [node for node in model.graph.node if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}]
    rename = {"xd": "x", "wd": "wf", "rd": "relu"}
    for node in nodes:
        node.input[:] = [rename.get(name, name) for name in node.input]
    weight = onnx.numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32), "wf")
    graph = onnx.helper.make_graph(
        nodes, "g", list(model.graph.input), list(model.graph.output), [*model.graph.initializer, weight]
    )
    plain = onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=10)
    found = executed(plain)
    assert not any(operator.integer for operator in found)
    (conv,) = [operator for operator in found if operator.op_type in {"Conv", "FusedConv"}]
    assert {"conv", "relu"} <= set(conv.covers)


def test_layout_on_bytes_is_integer_and_on_floats_is_not() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    g (uint8[2,3] a, float[2,3] b) => (uint8[3,2] c, float[3,2] d) {
        c = Transpose<perm=[1,0]>(a)
        d = Transpose<perm=[1,0]>(b)
    }"""
    by_output = {operator.outputs[0]: operator for operator in executed(onnx.parser.parse_model(text))}
    assert by_output["c"].integer
    assert not by_output["d"].integer


def test_a_model_that_does_not_load_is_a_typed_error() -> None:
    with pytest.raises(SessionError):
        executed(scale()[:50])

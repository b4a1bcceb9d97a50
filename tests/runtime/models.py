"""Small ONNX models, and what a quantized convolution looks like."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

QDQ_CONV = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch,3,8,8] x) => (float[batch,16] y) {
    xq = QuantizeLinear(x, xs, xz)
    xd = DequantizeLinear(xq, xs, xz)
    wd = DequantizeLinear<axis=0>(w, ws, wz)
    conv = Conv<pads=[1,1,1,1]>(xd, wd)
    relu = Relu(conv)
    rq = QuantizeLinear(relu, rs, rz)
    rd = DequantizeLinear(rq, rs, rz)
    flat = Flatten(rd)
    y = MatMul(flat, head)
}"""


def scale(factor: float = 2.0, size: int = 4) -> bytes:
    """`y = factor * x` with a dynamic first dimension."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])
    stored = onnx.numpy_helper.from_array(np.array([factor], np.float32), "factor")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"], "mul")], "g", [x], [y], [stored]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def matmuls(count: int, size: int = 128) -> bytes:
    """`count` matrix products in a row: time and memory in proportion to `count`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])
    y = helper.make_tensor_value_info(f"v{count}", TensorProto.FLOAT, [size, size])
    generator = np.random.default_rng(0)
    stored, nodes = [], []
    for index in range(count):
        weight = generator.standard_normal((size, size)).astype(np.float32) / size**0.5
        stored.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        source = f"v{index}" if index else "x"
        nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [f"v{index + 1}"]))
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def quantized_conv(weight_type: type[np.generic] = np.int8) -> onnx.ModelProto:
    """Q, convolution with Relu, Q, flatten, and a float product: integer and float kernels in one graph."""
    model = onnx.parser.parse_model(QDQ_CONV)
    generator = np.random.default_rng(0)
    tensors = {
        "w": generator.integers(-127, 128, (16, 3, 3, 3)).astype(weight_type),
        "ws": np.full(16, 0.01, np.float32),
        "wz": np.zeros(16, weight_type),
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
        "rs": np.float32(0.05),
        "rz": np.uint8(0),
        "head": generator.standard_normal((16 * 64, 16)).astype(np.float32),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()
    )
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(model)
    return model

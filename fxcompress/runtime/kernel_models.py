"""One operator as an ONNX model, from its shapes alone: what a kernel time is measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fxcompress.errors import NotSupported

OPSET, IR = 20, 9
Shape = tuple[int, ...]
Attribute = int | float | str | tuple[int, ...]

PRECISIONS = ("float32",)
"""What models can be built in; a plan of precisions adds its own."""


@dataclass(frozen=True)
class Kernel:
    """One operator at concrete shapes.

    Args:
        operator: the ONNX operator, or `Attention` for scores, softmax and weighted sum.
        inputs: shapes of the activations it reads.
        stored: shapes of the constants it reads after them.
        attributes: ONNX attributes, sorted by name.
        precision: what it computes in.
    """

    operator: str
    inputs: tuple[Shape, ...]
    stored: tuple[Shape, ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    precision: str = "float32"

    @property
    def key(self) -> str:
        """The kernel as text; equal for equal kernels, in any process."""
        return json.dumps(
            [self.operator, self.precision, self.inputs, self.stored, self.attributes],
            separators=(",", ":"),
        )


def model_of(kernel: Kernel) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A model that runs the kernel once, and feeds for it.

    Raises:
        NotSupported: a precision that no model can be built in.
    """
    if kernel.precision not in PRECISIONS:
        raise NotSupported(
            f"no kernel model in {kernel.precision!r}", hint=f"there are {', '.join(PRECISIONS)}"
        )
    names = [f"x{place}" for place in range(len(kernel.inputs))]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, kernel.inputs, strict=True)
    ]
    constants = [
        numpy_helper.from_array(_noise(shape), f"w{place}") for place, shape in enumerate(kernel.stored)
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = _nodes(kernel, [*names, *(tensor.name for tensor in constants)])
    graph = helper.make_graph(nodes, "kernel", values, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    feeds = {name: _noise(shape) for name, shape in zip(names, kernel.inputs, strict=True)}
    return model.SerializeToString(), feeds


def _nodes(kernel: Kernel, names: Sequence[str]) -> list[onnx.NodeProto]:
    if kernel.operator != "Attention":
        attributes: dict[str, Any] = dict(kernel.attributes)
        return [helper.make_node(kernel.operator, names, ["y"], **attributes)]
    q, k, v = names
    rank = len(kernel.inputs[1])
    order = [*range(rank - 2), rank - 1, rank - 2]
    return [
        helper.make_node("Transpose", [k], ["t"], perm=order),
        helper.make_node("MatMul", [q, "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", v], ["y"]),
    ]


@cache
def _pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0.1, 1.0, 1 << 22).astype(np.float32)


def _noise(shape: Shape) -> NDArray[np.float32]:
    """Values like any other; their magnitude matters to no kernel as long as none is denormal."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.resize(_pool()[: max(1, size)], shape)

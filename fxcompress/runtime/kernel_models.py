"""One operator as an ONNX model, from its shapes alone: what a kernel time is measured on.

In `int8` the operator stands between pairs, as in a quantized network: its inputs are dequantized, constants
are stored as int8 per channel (the bias as int32), the output is quantized, and the runtime makes an integer
kernel of the whole, or shows that it has none by leaving the pairs. In `int8>float32` nothing quantizes the
output. The steps between two precisions and two layouts are kernels too: `QuantizeLinear`,
`DequantizeLinear`, `ReorderInput` and `ReorderOutput` (into and out of the blocked layout of float
convolutions), and `Transpose` in `int8` (integer convolutions want channels last).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fxcompress.errors import NotSupported

OPSET, IR = 20, 9
STEP, WEIGHT_STEP, MIDDLE = 0.02, 0.003, 128
"""Scales and zero point of what is quantized; kernels take as long with others."""
Shape = tuple[int, ...]
Attribute = int | float | str | tuple[int, ...]

PRECISIONS = ("float32", "int8", "int8>float32")
"""What models can be built in: all in float, all in integers, integers in and float out."""

REORDERS = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class Kernel:
    """One operator at concrete shapes.

    Args:
        operator: the ONNX operator, or `Attention` for scores, softmax and weighted sum, or `Gate` for the
            product of a tensor with `activation` of it.
        inputs: shapes of the activations it reads.
        stored: shapes of the constants it reads after them.
        attributes: ONNX attributes, sorted by name.
        precision: what it computes in.
        activation: the ONNX operator that follows and is part of the kernel where the runtime can do so.
    """

    operator: str
    inputs: tuple[Shape, ...]
    stored: tuple[Shape, ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    precision: str = "float32"
    activation: str = ""

    @property
    def key(self) -> str:
        """The kernel as text; equal for equal kernels, in any process."""
        parts = [self.operator, self.precision, self.inputs, self.stored, self.attributes]
        return json.dumps(parts + [self.activation] * bool(self.activation), separators=(",", ":"))


def model_of(kernel: Kernel) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A model that runs the kernel once, and feeds for it.

    Raises:
        NotSupported: a precision that no model can be built in.
    """
    if kernel.precision not in PRECISIONS:
        raise NotSupported(
            f"no kernel model in {kernel.precision!r}", hint=f"there are {', '.join(PRECISIONS)}"
        )
    draft = _Draft(kernel)
    draft.write()
    graph = helper.make_graph(draft.nodes, "kernel", draft.inputs, [draft.output], draft.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return model.SerializeToString(), draft.feeds


def made_by_convolution(kernel: Kernel) -> bool:
    """Whether the kernel is a convolution with what the runtime may fold into it."""
    return kernel.operator == "Conv" and bool(kernel.activation)


class _Draft:
    """The parts of one model, as they are written."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.feeds: dict[str, NDArray[Any]] = {}
        self.output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)

    def write(self) -> None:
        operator, integers = self.kernel.operator, self.kernel.precision != "float32"
        if operator in REORDERS:
            self._reorder()
        elif operator == "QuantizeLinear":
            self._finish(self._quantized(self._input(self.kernel.inputs[0], integers=False)))
        elif operator == "DequantizeLinear":
            self._finish(self._real(self._input(self.kernel.inputs[0], integers=True)))
        elif operator == "Transpose" and integers:
            turned = self._node(
                operator, [self._input(self.kernel.inputs[0], integers=True)], self._attributes
            )
            self.output = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
            self._finish(turned)
        else:
            self._operator(integers)

    @property
    def _attributes(self) -> dict[str, Any]:
        return dict(self.kernel.attributes)

    def _operator(self, integers: bool) -> None:
        names = [self._input(shape, integers) for shape in self.kernel.inputs]
        if integers:
            names = [self._real(self._last_channels(name)) for name in names]
        names += [self._stored(place, integers) for place in range(len(self.kernel.stored))]
        if self.kernel.operator == "Attention":
            made = self._attention(names)
        elif self.kernel.operator == "Gate":
            made = self._gate(names[0], integers)
        else:
            made = self._node(self.kernel.operator, names, self._attributes)
            made = self._activation(made) if self.kernel.activation else made
        if made_by_convolution(self.kernel) and not integers:
            # The runtime folds a hard-swish into a convolution unless its result is the model's.
            made = self._node("GlobalAveragePool", [made])
        self._finish(self._quantized(made) if self.kernel.precision == "int8" else made)

    def _last_channels(self, source: str) -> str:
        """Let an image come out of an integer convolution, as in a network: the runtime then keeps its
        channels last, which other kernels are written for, and nothing else is part of the measurement.
        """
        shape = self.kernel.inputs[int(source[1:])]
        if len(shape) != 4 or self.kernel.operator in ("Conv", "MatMul"):
            return source
        unit = np.full((shape[1], 1, 1, 1), 100, np.int8)
        scales, zeros = np.full(shape[1], 0.01, np.float32), np.zeros(shape[1], np.int8)
        constants = [self._constant(value) for value in (unit, scales, zeros)]
        weight = self._node("DequantizeLinear", constants, {"axis": 0})
        made = self._node("Conv", [self._real(source), weight], {"group": shape[1]})
        return self._node("QuantizeLinear", [made, *self._scheme(STEP, MIDDLE)])

    def _activation(self, source: str) -> str:
        """The operator that follows; `Clip` stands for the clamping of a ReLU6."""
        limits = []
        if self.kernel.activation == "Clip":
            limits = [self._constant(np.float32(0.0)), self._constant(np.float32(6.0))]
        return self._node(self.kernel.activation, [source, *limits])

    def _gate(self, source: str, integers: bool) -> str:
        gate = self._node(self.kernel.activation, [source])
        if integers:
            scheme = (1 / 256, 0)
            gate = self._node("QuantizeLinear", [gate, *self._scheme(*scheme)])
            gate = self._node("DequantizeLinear", [gate, *self._scheme(*scheme)])
        return self._node("Mul", [source, gate])

    def _attention(self, names: Sequence[str]) -> str:
        q, k, v = names
        rank = len(self.kernel.inputs[1])
        order = [*range(rank - 2), rank - 1, rank - 2]
        scores = self._node("MatMul", [q, self._node("Transpose", [k], {"perm": order})])
        return self._node("MatMul", [self._node("Softmax", [scores], {"axis": -1}), v])

    def _reorder(self) -> None:
        """A depthwise convolution alone: the runtime reorders its input and its output."""
        channels = self.kernel.inputs[0][1]
        names = [self._input(self.kernel.inputs[0], integers=False)]
        names.append(self._constant(_noise((channels, 1, 1, 1))))
        self._finish(self._node("Conv", names, {"group": channels}))

    def _input(self, shape: Shape, integers: bool) -> str:
        name = f"x{len(self.inputs)}"
        kind = TensorProto.UINT8 if integers else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        noise = _noise(shape)
        self.feeds[name] = (noise * 255).astype(np.uint8) if integers else noise
        return name

    def _stored(self, place: int, integers: bool) -> str:
        """A constant; in integers with a scale per output channel."""
        shape = self.kernel.stored[place]
        if not integers:
            return self._constant(_noise(shape))
        axis = len(shape) - 1 if self.kernel.operator == "MatMul" else 0
        noise = _noise(shape) - np.float32(0.55)
        whole = (noise * 250).astype(np.int8 if place == 0 else np.int32)
        scales = np.full(shape[axis], STEP * WEIGHT_STEP if place else WEIGHT_STEP, np.float32)
        zeros = np.zeros(shape[axis], whole.dtype)
        names = [self._constant(value) for value in (whole, scales, zeros)]
        return self._node("DequantizeLinear", names, {"axis": axis})

    def _quantized(self, source: str) -> str:
        """Quantize; what ends at zero gets its zero point there, so that a rectifier is absorbed."""
        self.output = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
        step, zero = (STEP, 0 if self.kernel.activation in ("Relu", "Clip") else MIDDLE)
        if self.kernel.operator == "Sigmoid":
            step, zero = 1 / 256, 0
        return self._node("QuantizeLinear", [source, *self._scheme(step, zero)])

    def _real(self, source: str) -> str:
        return self._node("DequantizeLinear", [source, *self._scheme(STEP, MIDDLE)])

    def _scheme(self, step: float, zero: int) -> list[str]:
        return [self._constant(np.float32(step)), self._constant(np.uint8(zero))]

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, names: Sequence[str], attributes: Mapping[str, Any] | None = None) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], name=name, **(attributes or {})))
        return name

    def _finish(self, last: str) -> None:
        """What was made last is the output."""
        self.nodes[-1].output[0] = "y"
        assert self.nodes[-1].name == last


@cache
def _pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0.1, 1.0, 1 << 22).astype(np.float32)


def _noise(shape: Shape) -> NDArray[np.float32]:
    """Values like any other; their magnitude matters to no kernel as long as none is denormal."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.resize(_pool()[: max(1, size)], shape)

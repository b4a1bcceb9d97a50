"""What a file holds, in terms that a program and an ONNX model share: tensors, operators, sizes.

`inspect` prints one of these, `diff` compares two.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from fxcompress.graph import text, walk
from fxcompress.graph.program import Program

INTEGER_WEIGHTS = frozenset({"int8", "uint8", "int4", "uint4"})


@dataclass(frozen=True)
class Stored:
    """One stored tensor; `digest` tells whether two hold the same values."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int
    digest: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Contents:
    """The parts of a file that people compare.

    Attributes:
        kind: `program` or `onnx`; operators of different kinds are not comparable, tensors are.
        inputs: name to a readable type, such as `f32[batch, 3, 8, 8]`.
        tensors: stored tensors by name.
        operators: name of each node to its operator.
        facts: further single-line facts, such as opset and producer.
    """

    kind: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    tensors: Mapping[str, Stored]
    operators: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def elements(self) -> int:
        """Number of stored values, scales and zero points included."""
        return sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in self.tensors.values())

    @property
    def integer_share(self) -> float:
        """Share of the stored bytes that are 8-bit or 4-bit integers."""
        integer = sum(t.bytes for t in self.tensors.values() if t.dtype in INTEGER_WEIGHTS)
        return integer / self.bytes if self.bytes else 0.0

    def by_operator(self) -> dict[str, int]:
        """How many nodes of each operator, most frequent first."""
        counted = Counter(self.operators.values())
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """The same for a machine."""
        return {
            "kind": self.kind,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "bytes": self.bytes,
            "elements": self.elements,
            "integer_share": self.integer_share,
            "operators": self.by_operator(),
            "tensors": {
                name: {"shape": list(t.shape), "dtype": t.dtype, "bytes": t.bytes}
                for name, t in self.tensors.items()
            },
            **self.facts,
        }


def of_program(program: Program) -> Contents:
    """The contents of a captured program."""
    named = text.symbol_names(program)
    outputs = zip(program.signature.outputs, walk.output_values(program), strict=True)
    return Contents(
        kind="program",
        inputs={node.name: text.describe(node.meta.get("val"), named) for node in walk.placeholders(program)},
        outputs={name: text.describe(node.meta.get("val"), named) for name, node in outputs},
        tensors={
            str(node.target): _torch_tensor(walk.tensor(program, node)) for node in walk.tensor_nodes(program)
        },
        operators={
            node.name: text.target_name(node.target)
            for node in program.graph.nodes
            if node.op == "call_function"
        },
    )


def of_onnx(model: onnx.ModelProto) -> Contents:
    """The contents of an ONNX model's main graph; weights held in Constant nodes count too."""
    tensors = {item.name: _onnx_tensor(item) for item in _onnx_tensors(model.graph)}
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    given = [value for value in model.graph.input if value.name not in tensors]
    opsets = ", ".join(f"{item.domain or 'ai.onnx'} {item.version}" for item in model.opset_import)
    return Contents(
        kind="onnx",
        inputs={value.name: _onnx_type(value) for value in given},
        outputs={value.name: _onnx_type(value) for value in model.graph.output},
        tensors=tensors,
        operators={node.name or node.output[0]: _onnx_operator(node) for node in nodes},
        facts={"opset": opsets, "ir": str(model.ir_version), "producer": model.producer_name},
    )


def _torch_tensor(tensor: torch.Tensor) -> Stored:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return Stored(
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        tensor.numel() * tensor.element_size(),
        _digest(flat.numpy().tobytes()),
    )


def _onnx_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                named = onnx.TensorProto()
                named.CopyFrom(attribute.t)
                named.name = node.output[0]
                yield named


def _onnx_tensor(tensor: onnx.TensorProto) -> Stored:
    array = numpy_helper.to_array(tensor)
    return Stored(tuple(tensor.dims), _onnx_dtype(tensor.data_type), array.nbytes, _digest(array.tobytes()))


def _onnx_dtype(element: int) -> str:
    return {"float": "float32", "double": "float64"}.get(
        name := onnx.TensorProto.DataType.Name(element).lower(), name
    )


def _onnx_type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    sizes = [dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim]
    return f"{_onnx_dtype(kind.elem_type)}[{', '.join(sizes)}]"


def _onnx_operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()

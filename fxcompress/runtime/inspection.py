"""What the runtime really executes: the operators of a session's optimised graph, and what each of them
computes.

ONNX Runtime rewrites a graph before running it: convolutions move to a blocked layout (`Conv` of the
`com.microsoft.nchwc` domain, with `ReorderInput`/`ReorderOutput` around), Q/DQ pairs become integer kernels
(`QLinearConv`, `QGemm`, `MatMulIntegerToFloat`), activations fuse. An executed operator is traced back to the
ONNX values it *covers* in the model it came from, and those carry the names of the program's nodes.

Quirks of onnxruntime 1.31: a value in the blocked layout keeps its name plus `_nchwc`; an integer kernel
keeps the node's name plus `_token_k`; the saved graph types its intermediate values in `value_info`; the
CPU's blocked layout makes that graph specific to this machine, so it is read and thrown away.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from fxcompress.runtime.session import Model, open_session, read_proto

_INTEGER_OPERATORS = frozenset(
    {
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulNBits",
    }
    | {"QAttention", "QGemm", "QOrderedMatMul", "QEmbedLayerNormalization", "QMoE", "NhwcMaxPool"}
)
_BRIDGES = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_BYTES = frozenset(
    {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
)
_RENAMED = re.compile(r"(_nchwc|_token_\d+|_q_to_dq|_post_dq|/duplicated\w*|_transformed_\d+)$")
_LAYOUT = frozenset(
    {
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Gather",
        "Concat",
        "Split",
        "Expand",
    }
    | {"MaxPool", "Pad", "Identity", "ReorderInput", "ReorderOutput", "Resize", "Tile", "DepthToSpace"}
)


@dataclass(frozen=True)
class ExecutedOp:
    """One operator of the optimised graph.

    Attributes:
        integer: it computes on 8-bit (or 4-bit) integers; layout operators on such tensors count, Q and DQ do
            not.
        outputs: the values it makes, under their names in the optimised graph.
        covers: the values of the *original* model that it computes, in graph order.
    """

    op_type: str
    domain: str
    name: str
    integer: bool
    outputs: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()


def executed(model: Model, *, threads: int = 1) -> tuple[ExecutedOp, ...]:
    """The operators an optimising session executes for `model`, in its order.

    Raises:
        SessionError: the model does not load.
    """
    original, optimised = read_proto(model), optimised_graph(model, threads=threads)
    types = _element_types(optimised.graph)
    covers = _covers(original.graph, optimised.graph)
    return tuple(
        ExecutedOp(
            node.op_type,
            node.domain,
            node.name,
            _is_integer(node, types),
            tuple(node.output),
            covers[position],
        )
        for position, node in enumerate(optimised.graph.node)
    )


def optimised_graph(model: Model, *, threads: int = 1) -> onnx.ModelProto:
    """The graph a session made of `model`, as the runtime writes it (specific to this CPU; not for
    deployment).

    Raises:
        SessionError: the model does not load.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimised.onnx")
        open_session(model, threads=threads, optimized_path=str(path))
        return onnx.load(str(path))


def executor_of(operators: Iterable[ExecutedOp]) -> dict[str, ExecutedOp]:
    """Value name of the original model to the operator that computes it."""
    return {name: operator for operator in operators for name in operator.covers}


def _is_integer(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    if node.op_type in _BRIDGES:
        return False
    if node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear"):
        return True
    return any(types.get(name) in _BYTES for name in node.output)


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Value name to ONNX element type: as stated, or through Q/DQ and layout operators where the graph is
    silent.
    """
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            zero_point = node.input[2] if len(node.input) > 2 else ""
            types.setdefault(node.output[0], types.get(zero_point, onnx.TensorProto.UINT8))
        elif node.op_type == "DequantizeLinear":
            types.setdefault(node.output[0], onnx.TensorProto.FLOAT)
        elif node.op_type in _LAYOUT and node.input and node.input[0] in types:
            for name in node.output:
                types.setdefault(name, types[node.input[0]])
    return types


def _covers(original: onnx.GraphProto, optimised: onnx.GraphProto) -> list[tuple[str, ...]]:
    """Per optimised node, the original values it computes: back to what other nodes hand over."""
    producer = {name: node for node in original.node for name in node.output if name}
    order = {name: position for position, node in enumerate(original.node) for name in node.output}
    owned = _owned(optimised, producer, {node.name: node for node in original.node if node.name})
    done: set[str] = set()
    result = []
    for own in owned:
        boundary = done.union(*(other for other in owned if other is not own)) - own
        found = _between(own, boundary, producer)
        done |= found
        result.append(tuple(sorted(found, key=lambda name: (order[name], name))))
    return result


def _owned(
    optimised: onnx.GraphProto, producer: Mapping[str, onnx.NodeProto], nodes: Mapping[str, onnx.NodeProto]
) -> list[set[str]]:
    """Per optimised node, the original values it ends in.

    They are found by the names of its outputs, or through layout nodes that the runtime added behind it (the
    value they hand on is really made before them), or, failing both, by the node's own name.
    """
    passed_on: dict[str, set[str]] = {}
    result: list[set[str]] = []
    for node in reversed(optimised.node):
        own = {known for name in node.output if (known := _known(name, producer)) is not None}
        own = own.union(*(passed_on.get(name, set()) for name in node.output))
        namesake = _known(node.name, nodes)
        if node.op_type in _LAYOUT and namesake is None and own:
            passed_on.setdefault(node.input[0], set()).update(own)
            own = set()
        elif not own and namesake is not None:
            own = {name for name in nodes[namesake].output if name}
        result.append(own)
    return result[::-1]


def _known(name: str, names: Mapping[str, onnx.NodeProto]) -> str | None:
    """The original name behind one that the runtime may have given suffixes."""
    while name not in names:
        shorter = _RENAMED.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return name


def _between(ends: set[str], boundary: set[str], producer: Mapping[str, onnx.NodeProto]) -> set[str]:
    """The values from which `ends` are computed, back to and without the boundary and the inputs."""
    found: set[str] = set()
    stack = list(ends)
    while stack:
        name = stack.pop()
        if name in found or name in boundary or name not in producer:
            continue
        node = producer[name]
        found.update(output for output in node.output if output)
        stack.extend(node.input)
    return found

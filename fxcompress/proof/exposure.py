"""Look inside a session: the same model with chosen intermediate values as outputs.

With the runtime's graph optimizations off, the graph is executed as written, and every value of the file can
be compared with the program's. With them on, quantized values can: an integer kernel ends in one (onnxruntime
1.31 fuses the same kernels when it is an output too, and only adds layout changes).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import onnx
import torch
from numpy.typing import NDArray

from fxcompress.lowering.acceptance import to_feeds
from fxcompress.lowering.provenance import values
from fxcompress.runtime.session import open_session, run


def inner_values(
    model: onnx.ModelProto, nodes: Collection[str], inputs: Sequence[torch.Tensor], *, optimize: bool = False
) -> tuple[dict[str, NDArray[Any]], list[NDArray[Any]]]:
    """Values of program nodes as a session computes them, and that session's outputs.

    Nodes that have no value in the file are left out.

    Args:
        model: a model written by `lower`.
        nodes: names of program nodes.
        inputs: flat inputs of the program.

    Raises:
        SessionError: the model does not load or run.
    """
    names = values(model)
    wanted = {node: names[node] for node in nodes if node in names}
    session = open_session(expose(model, wanted.values()), optimize=optimize)
    results = run(session, feeds_of(model, inputs))
    outputs = [results[value.name] for value in model.graph.output]
    return {node: results[name] for node, name in wanted.items()}, outputs


def outputs_of(
    model: onnx.ModelProto, inputs: Sequence[torch.Tensor], *, optimize: bool
) -> list[NDArray[Any]]:
    """The outputs of a session, in order.

    Raises:
        SessionError: the model does not load or run.
    """
    results = run(open_session(model, optimize=optimize), feeds_of(model, inputs))
    return [results[value.name] for value in model.graph.output]


def feeds_of(model: onnx.ModelProto, inputs: Sequence[torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Flat inputs by the names of the model's inputs."""
    return to_feeds([value.name for value in model.graph.input], inputs)


def expose(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of a model whose outputs are its own and the named values; the runtime infers their types."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    hidden = [name for name in dict.fromkeys(names) if name not in known]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in hidden)
    return exposed

"""An artefact is checked before anyone gets it: valid ONNX, loads, runs, and its dynamic dimensions are
dynamic.

What it *computes* is the business of `fxcompress.proof`; this says only that the file works as its signature
says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from fxcompress.errors import LoweringError
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.runtime.session import LARGE, SessionError, open_session, run, tensor_bytes

Feeds = dict[str, NDArray[Any]]


def accept(model: onnx.ModelProto, program: Program) -> None:
    """Check a model, load it, and run it on the program's example and once more at every other dynamic size.

    Raises:
        LoweringError: the model is not valid ONNX, or the runtime does not load or run it as the signature
            promises.
    """
    try:
        if tensor_bytes(model) < LARGE:
            onnx.checker.check_model(model)
        session = open_session(model)
        for feeds in example_feeds(program, [value.name for value in model.graph.input]):
            _check_shapes(session, feeds, run(session, feeds))
    except (onnx.checker.ValidationError, SessionError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LoweringError(f"the lowered model is not usable: {lines[0]}", hint=_hint(program)) from error


def _hint(program: Program) -> str:
    """What to do about a file that the runtime refuses: most kernels exist for float32 alone."""
    stored = {walk.dtype(node) for node in walk.tensor_nodes(program)}
    other = sorted(str(dtype) for dtype in stored if dtype.is_floating_point and dtype != torch.float32)
    if other:
        return f"the model holds {', '.join(other)}, which the runtime lacks kernels for: pass model.float()"
    return "this is a defect of fxcompress; please report it"


def example_feeds(program: Program, names: Sequence[str]) -> list[Feeds]:
    """The example as named arrays, and the same with every dynamic dimension one larger, if there are any."""
    tensors = program.flat_example()
    feeds = [to_feeds(names, tensors)]
    dynamic = program.signature.dynamic
    if any(dynamic.get(name) for name in program.signature.inputs):
        grown = [
            _grow(tensor, dynamic.get(name, {}))
            for name, tensor in zip(program.signature.inputs, tensors, strict=True)
        ]
        feeds.append(to_feeds(names, grown))
    return feeds


def to_feeds(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Feeds:
    """Tensors as arrays under the names of a model's inputs, in order."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _grow(tensor: torch.Tensor, dims: Mapping[int, str]) -> torch.Tensor:
    """The tensor with its first slice repeated once along each of `dims`."""
    for dim in dims:
        tensor = torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)
    return tensor


def _check_shapes(session: ort.InferenceSession, feeds: Feeds, results: Feeds) -> None:
    """Compare the sizes of the results with the declared ones, dynamic names taken from the inputs."""
    sizes: dict[str, int] = {}
    for value in session.get_inputs():
        pairs = zip(value.shape, feeds[value.name].shape, strict=True)
        sizes.update({declared: size for declared, size in pairs if isinstance(declared, str)})
    for value in session.get_outputs():
        expected = [sizes.get(size) if isinstance(size, str) else size for size in value.shape]
        got = list(results[value.name].shape)
        if len(got) != len(expected) or any(
            want is not None and want != have for want, have in zip(expected, got, strict=True)
        ):
            raise SessionError(f"output {value.name!r} is declared {value.shape} and comes out as {got}")
        if results[value.name].dtype == np.object_:
            raise SessionError(f"output {value.name!r} is not a tensor of numbers")

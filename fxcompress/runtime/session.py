"""ONNX Runtime sessions: opened from bytes, a file or a ModelProto, run on named arrays, with typed errors.

Quirks of onnxruntime 1.31 that this file hides:
- a session logs to stderr by itself, also for errors it then raises: sessions and runs are set to "fatal
  only";
- `inter_op_num_threads` only matters in parallel execution mode, but its pool is created anyway: it is set to
  one;
- the threads of a session go on spinning after its run, for work to come, and take the cores from the next
  session of the process: with three sessions of two threads on two cores, a call of MobileNetV2 takes 18.0 ms
  instead of 5.3 alone. Spinning is stopped at the end of every run (5.8 ms beside the two others);
- a protobuf message cannot exceed 2 GiB: larger models go through a temporary file with external data;
- a wrong feed is reported as a bare `InvalidArgument`, without the list of what the model does take.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from fxcompress.errors import InputError, first_line

Model = bytes | str | os.PathLike[str] | onnx.ModelProto
Feeds = Mapping[str, NDArray[Any]]

RUNTIME_ERRORS = (
    *(
        ort_state.EPFail,
        ort_state.EngineError,
        ort_state.Fail,
        ort_state.InvalidArgument,
        ort_state.InvalidGraph,
    ),
    *(ort_state.InvalidProtobuf, ort_state.NoModel, ort_state.NoSuchFile, ort_state.NotFound),
    *(ort_state.NotImplemented, ort_state.RuntimeException, RuntimeError, ValueError, TypeError),
)
"""What onnxruntime raises; its own exceptions share no base class."""

_FATAL = 4
LARGE = 2_000_000_000
"""Bytes of tensors above which one protobuf message cannot hold a model (its limit is 2 GiB)."""
_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class SessionError(InputError):
    """The runtime refuses a model, or a feed does not fit the model."""


def open_session(
    model: Model, *, threads: int = 1, optimize: bool = True, optimized_path: str | None = None
) -> ort.InferenceSession:
    """Open a CPU session with `threads` intra-operator threads and no other parallelism.

    Args:
        model: ONNX bytes, the path of an ONNX file, or a ModelProto.
        optimize: all of the runtime's graph optimizations, or none (the graph runs as written, operator by
            operator).
        optimized_path: where the runtime writes the graph it really executes.

    Raises:
        SessionError: no such file, a truncated or invalid one, or a model the installed runtime does not
            accept.
    """
    if threads < 1:
        raise SessionError(f"threads must be at least 1, got {threads}")
    options = session_options(threads=threads, optimize=optimize)
    if optimized_path is not None:
        options.optimized_model_filepath = optimized_path
    if isinstance(model, onnx.ModelProto):
        return _open_proto(model, options)
    if isinstance(model, bytes):
        if not model:
            raise SessionError(
                "the ONNX model is empty (0 bytes)", hint="the file was cut short; write it again"
            )
        return _open(model, options, f"ONNX model of {len(model)} bytes")
    path = Path(model)
    if not path.is_file():
        raise SessionError(f"no such ONNX file: {path}", hint="pass the path of an existing .onnx file")
    if path.stat().st_size == 0:
        raise SessionError(f"{path} is empty (0 bytes)", hint="the file was cut short; write it again")
    return _open(str(path), options, str(path))


def session_options(*, threads: int = 1, optimize: bool = True) -> ort.SessionOptions:
    """The options every session of ours uses: sequential, silent, `threads` threads inside an operator."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def run(session: ort.InferenceSession, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Run a session on named arrays and return its outputs by name, in the model's order.

    Raises:
        SessionError: a missing or unknown name, a wrong dtype or shape, or a failure inside the runtime.
    """
    arrays = contiguous(feeds)
    check_feeds(session, arrays)
    names = [output.name for output in session.get_outputs()]
    quiet = ort.RunOptions()
    quiet.log_severity_level = _FATAL
    try:
        values = session.run(names, arrays, quiet)
    except RUNTIME_ERRORS as error:
        raise SessionError(f"onnxruntime failed while running the model: {first_line(error)}") from error
    return dict(zip(names, values, strict=True))


def contiguous(feeds: Feeds) -> dict[str, NDArray[Any]]:
    """The same arrays in row-major order, so that no call pays for a copy; scalars stay scalars."""
    return {name: np.ascontiguousarray(value) if value.ndim else value for name, value in feeds.items()}


def check_feeds(session: ort.InferenceSession, feeds: Feeds) -> None:
    """Raise SessionError unless `feeds` names every input of the session once, with its dtype and static
    sizes.
    """
    wanted = {value.name: value for value in session.get_inputs()}
    missing, unknown = sorted(set(wanted) - set(feeds)), sorted(set(feeds) - set(wanted))
    if missing or unknown:
        raise SessionError(
            f"the feeds do not fit the model: missing {missing}, unknown {unknown}",
            hint="the model takes " + ", ".join(_signature(value) for value in wanted.values()),
        )
    sizes: dict[str, int] = {}
    for name, value in wanted.items():
        array = feeds[name]
        dtype = _NUMPY_TYPES.get(value.type)
        if dtype is not None and array.dtype != dtype:
            raise SessionError(f"input {name!r} is {array.dtype}, the model takes {_signature(value)}")
        if not _fits(array.shape, value.shape, sizes):
            raise SessionError(
                f"input {name!r} has shape {list(array.shape)}, the model takes {_signature(value)}"
            )


def dtype_of(value: ort.NodeArg) -> np.dtype[Any]:
    """The numpy dtype of a session's input or output.

    Raises:
        SessionError: the value is not a tensor of a type numpy has.
    """
    if value.type not in _NUMPY_TYPES:
        raise SessionError(f"{value.name!r} is a {value.type}, which numpy cannot hold")
    return np.dtype(_NUMPY_TYPES[value.type])


def _open_proto(model: onnx.ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    label = f"ONNX model {model.graph.name!r}"
    if tensor_bytes(model) < LARGE:
        return _open(model.SerializeToString(), options, label)
    with tempfile.TemporaryDirectory() as folder:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)  # saving with external data empties the tensors of the message it is given
        path = os.path.join(folder, "model.onnx")
        onnx.save_model(copy, path, save_as_external_data=True, location="model.onnx.data")
        return _open(path, options, label)


def _open(source: bytes | str, options: ort.SessionOptions, label: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise SessionError(
            f"onnxruntime {ort.__version__} does not accept {label}: {first_line(error)}",
            hint="the file may be truncated, or written for a newer opset or IR version than the runtime has",
        ) from error


def _fits(shape: tuple[int, ...], wanted: list[int | str | None], sizes: dict[str, int]) -> bool:
    """Whether a shape is a model's: None is free, and so is a name, which has one size in all inputs."""
    if len(shape) != len(wanted):
        return False
    for size, want in zip(shape, wanted, strict=True):
        expected = sizes.setdefault(want, size) if isinstance(want, str) else want
        if expected is not None and expected != size:
            return False
    return True


def _signature(value: ort.NodeArg) -> str:
    return f"{value.name}: {value.type.removeprefix('tensor(').removesuffix(')')}{value.shape}"


def tensor_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the stored tensors, without serialising the model."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def read_proto(model: Model) -> onnx.ModelProto:
    """The model as a protobuf message.

    Raises:
        SessionError: the bytes or the file are not an ONNX model.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise SessionError(
            f"not a readable ONNX model: {first_line(error)}",
            hint="the file, or the file of tensors beside it, may be truncated or missing; write it again",
        ) from error

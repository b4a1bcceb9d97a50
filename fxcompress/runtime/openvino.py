"""OpenVINO, where it is installed: models compiled for its CPU plugin, run, and their kernels listed.

The adapter of an optional package: nothing else imports `openvino`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxcompress.errors import NotSupported, first_line
from fxcompress.runtime.optional import optional
from fxcompress.runtime.session import Feeds, SessionError, contiguous

INTEGERS = frozenset({"i8", "u8", "i4", "u4"})
FLOAT32 = "f32"
_DATA = frozenset({"Input", "Output", "Const", "Reorder"})


@dataclass(frozen=True)
class Compiled:
    """A model that OpenVINO's CPU plugin has compiled."""

    model: Any
    outputs: tuple[str, ...]

    def run(self, output_names: None, feeds: Feeds) -> list[NDArray[Any]]:  # noqa: ARG002
        """Run on named arrays, called like an ONNX Runtime session; outputs in the model's order."""
        found = self.model(dict(feeds))
        return [np.array(found[index]) for index in range(len(self.outputs))]


@dataclass(frozen=True)
class Layer:
    """One primitive of a compiled model.

    Attributes:
        kind: the layer's type, such as "Convolution".
        precision: what it computes in, such as "u8", "i8", "f32".
        covers: the operators of the original model that are in it.
    """

    kind: str
    precision: str
    covers: tuple[str, ...]

    @property
    def integer(self) -> bool:
        """Whether it computes on integers of at most 8 bits."""
        return self.precision in INTEGERS


def version() -> str:
    """Return the installed version.

    Raises:
        NotSupported: OpenVINO is not installed.
    """
    return str(optional("openvino", "openvino").get_version())


def available() -> bool:
    """Whether OpenVINO can be imported."""
    try:
        optional("openvino", "openvino")
    except NotSupported:
        return False
    return True


def compiled(model: bytes, *, threads: int = 1, exact: bool = False) -> Compiled:
    """Compile ONNX bytes for the CPU, for latency, with that many threads.

    Args:
        model: the ONNX file.
        threads: threads of inference.
        exact: floats stay float32; else the plugin may use bfloat16 where the CPU has it.

    Raises:
        NotSupported: OpenVINO is not installed.
        SessionError: it does not accept the model.
    """
    core = optional("openvino", "openvino").Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if exact:
        options["INFERENCE_PRECISION_HINT"] = FLOAT32
    try:
        made = core.compile_model(core.read_model(model), "CPU", options)
    except RuntimeError as error:
        raise SessionError(f"OpenVINO does not accept the model: {first_line(error)}") from error
    return Compiled(made, tuple(output.get_any_name() for output in made.outputs))


def run(session: Compiled, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Run a compiled model on named arrays and return its outputs by name.

    Raises:
        SessionError: a missing or unknown name, a wrong dtype or shape, or a failure inside the runtime.
    """
    try:
        values = session.run(None, contiguous(feeds))
    except RuntimeError as error:
        raise SessionError(f"OpenVINO failed while running the model: {first_line(error)}") from error
    return dict(zip(session.outputs, values, strict=True))


def layers(session: Compiled) -> tuple[Layer, ...]:
    """Return the primitives that a compiled model executes, without constants, ports and reorders."""
    found = []
    for node in session.model.get_runtime_model().get_ordered_ops():
        info: Mapping[str, Any] = node.get_rt_info()
        kind = _text(info, "layerType")
        if kind in _DATA:
            continue
        names = tuple(name for name in _text(info, "originalLayersNames").split(",") if name)
        found.append(Layer(kind, _text(info, "runtimePrecision"), names))
    return tuple(found)


def _text(info: Mapping[str, Any], key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""

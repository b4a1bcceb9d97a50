"""The quantizers that ours is measured against, each called as its documentation says is best.

- `onnxruntime.quantization.quantize_static`: Q/DQ format, `uint8` activations, `int8` weights per channel,
  after `quant_pre_process` (shape inference and the runtime's own fusions).
- `nncf.quantize` on the ONNX file, told when it is a transformer.
- OpenVINO does not quantize here: it runs the files of all the others.

They read the ONNX file that they are given; times do not depend on how many samples they calibrate with.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import openvino
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Feeds = Mapping[str, NDArray[Any]]

_ATTENTION = frozenset({"Softmax", "Attention"})


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out feeds one after the other."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Feeds | None:  # type: ignore[override]
        return next(self._left, None)


def quantize_static_best(model: bytes, feeds: Sequence[Feeds], *, per_channel: bool = True) -> bytes:
    """ONNX Runtime's static quantizer at its best setting; ONNX bytes in and out."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, made = (str(Path(folder, name)) for name in ("f.onnx", "p.onnx", "q.onnx"))
        Path(source).write_bytes(model)
        _prepare(source, prepared)
        quantize_static(
            prepared,
            made,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
        )
        return Path(made).read_bytes()


def _prepare(source: str, prepared: str) -> None:
    """`quant_pre_process`; symbolic shape inference, which only dynamic sizes need, fails on some graphs."""
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=False)
    except Exception:  # noqa: BLE001 - it raises bare exceptions, and has this option for it
        quant_pre_process(source, prepared, skip_symbolic_shape=True)


def nncf_quantize(model: bytes, feeds: Sequence[Feeds]) -> bytes:
    """NNCF's post-training quantization of an ONNX model; ONNX bytes in and out."""
    proto = onnx.load_from_string(model)
    attention = any(node.op_type in _ATTENTION for node in proto.graph.node)
    with _quiet():
        made = nncf.quantize(
            proto,
            nncf.Dataset(list(feeds)),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER if attention else None,
        )
    content: bytes = made.SerializeToString()
    return content


PEERS: Mapping[str, Callable[[bytes, Sequence[Feeds]], bytes]] = {
    "quantize_static": quantize_static_best,
    "nncf": nncf_quantize,
}


def openvino_ms(model: bytes, feeds: Feeds, *, threads: int = 1, seconds: float = 0.5) -> float:
    """Median milliseconds of one call in OpenVINO, at its own default precision for this CPU."""
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(io.BytesIO(model)),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()
    for _ in range(3):
        request.infer(dict(feeds))
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 10:
        start = time.perf_counter()
        request.infer(dict(feeds))
        taken.append(time.perf_counter() - start)
    return 1e3 * float(np.median(taken))


@contextlib.contextmanager
def _quiet() -> Any:
    """No progress bars, log lines or prints."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)

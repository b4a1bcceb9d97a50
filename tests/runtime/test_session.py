from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fxcompress.errors import InputError
from fxcompress.runtime import session as module
from fxcompress.runtime.session import SessionError, dtype_of, open_session, read_proto, run, session_options
from fxcompress.runtime.versions import newest_ir, newest_opset
from tests.runtime.models import matmuls, quantized_conv, scale

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_bytes_paths_and_messages_open_alike(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(scale())
    for model in (scale(), str(path), path, onnx.load_from_string(scale())):
        np.testing.assert_array_equal(run(open_session(model), {"x": X})["y"], 2 * X)


def test_large_messages_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1000)
    model = onnx.load_from_string(matmuls(2))
    feeds = {"x": np.ones((128, 128), np.float32)}
    expected = run(open_session(matmuls(2)), feeds)["v2"]
    np.testing.assert_array_equal(run(open_session(model), feeds)["v2"], expected)
    assert model == onnx.load_from_string(matmuls(2)), "the message is left whole"


def test_options_are_those_of_an_honest_measurement() -> None:
    options = session_options(threads=2, optimize=False)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    # Sessions are timed beside each other: one must not spin while another runs.
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    assert session_options().graph_optimization_level.name == "ORT_ENABLE_ALL"


@pytest.mark.parametrize("keep", [0, 1, 20, 60, -1])
def test_a_truncated_model_is_a_typed_error(
    tmp_path: Path, keep: int, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = scale()[:keep]
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken)
    for model in (broken, path):
        with pytest.raises(SessionError) as caught:
            open_session(model)
        assert caught.value.hint is not None
        assert isinstance(caught.value, InputError)
    assert capfd.readouterr().err == "", "the runtime's own log is silent"


def test_what_is_no_model_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no such ONNX file"):
        open_session(tmp_path / "missing.onnx")
    with pytest.raises(SessionError, match="not accept"):
        open_session(b"this is no protobuf at all")
    with pytest.raises(SessionError, match="not a readable"):
        read_proto(b"this is no protobuf at all")
    with pytest.raises(SessionError, match="not a readable"):
        read_proto(str(tmp_path / "missing.onnx"))


def test_a_model_from_the_future_is_a_typed_error() -> None:
    future = onnx.load_from_string(scale())
    future.opset_import[0].version = newest_opset() + 1
    with pytest.raises(SessionError, match="not accept"):
        open_session(future)


def test_versions_are_what_the_runtime_accepts() -> None:
    model = onnx.load_from_string(scale())
    model.opset_import[0].version, model.ir_version = newest_opset(), newest_ir()
    np.testing.assert_array_equal(run(open_session(model), {"x": X})["y"], 2 * X)
    model.ir_version = newest_ir() + 1
    with pytest.raises(SessionError):
        open_session(model)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing"),
        ({"x": X, "z": X}, "unknown"),
        ({"X": X}, "missing"),
        ({"x": X.astype(np.float64)}, "float64"),
        ({"x": X[0]}, "shape"),
        ({"x": X[:, :3]}, "shape"),
    ],
)
def test_wrong_feeds_are_typed_errors(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(SessionError, match=message) as caught:
        run(open_session(scale()), feeds)
    assert "[batch" in str(caught.value) or "'batch'" in str(caught.value)


def test_two_inputs_that_share_a_dimension_must_agree() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]>g (float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }'
    )
    session = open_session(model)
    with pytest.raises(SessionError, match="shape"):
        run(session, {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)})


def test_a_failure_inside_the_runtime_is_a_typed_error() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]>'
        "g (float[n] a, int64[1] s) => (float[m] y) { y = Reshape(a, s) }"
    )
    with pytest.raises(SessionError, match="failed while running"):
        run(open_session(model), {"a": np.ones(3, np.float32), "s": np.array([4])})


def test_views_that_are_not_contiguous_are_fed_right() -> None:
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(run(open_session(scale()), {"x": x.T[::2]})["y"], 2 * x.T[::2])


def test_threads_must_be_positive() -> None:
    with pytest.raises(SessionError, match="threads"):
        open_session(scale(), threads=0)


def test_dtype_of() -> None:
    session = open_session(quantized_conv())
    assert dtype_of(session.get_inputs()[0]) == np.float32

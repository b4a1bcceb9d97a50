from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fxcompress.errors import InputError
from fxcompress.lowering import write
from fxcompress.lowering.write import save_model
from fxcompress.runtime.session import open_session, run, tensor_bytes
from tests.lowering.graphs import floats, model_of


def model() -> onnx.ModelProto:
    return model_of("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, W) }", {"W": floats(64, 64)})


def test_a_model_is_written_and_nothing_else(tmp_path: Path) -> None:
    save_model(model(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert onnx.load(tmp_path / "model.onnx") == model()


def test_a_large_model_keeps_its_tensors_beside_it(tmp_path: Path) -> None:
    original = model()
    save_model(original, tmp_path / "model.onnx", large=1000)
    assert original == model(), "the model in memory is left whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < 1000 < tensor_bytes(original)
    x = {"x": floats(2, 64)}
    expected = run(open_session(original), x)["y"]
    np.testing.assert_array_equal(run(open_session(tmp_path / "model.onnx"), x)["y"], expected)


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        save_model(model(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert target.read_bytes() == b"old"


def test_a_missing_folder_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save_model(model(), tmp_path / "missing" / "model.onnx")

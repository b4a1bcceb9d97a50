from __future__ import annotations

import numpy as np
import onnx
import pytest

from fxcompress.runtime.memory import peak_memory
from fxcompress.runtime.session import SessionError
from tests.runtime.models import matmuls, scale

MIB = 2**20


def test_the_figure_is_the_models_and_not_this_processes() -> None:
    ballast = np.ones(200 * MIB, np.uint8)  # resident here, absent there
    size = 1024
    feeds = {"x": np.ones((size, size), np.float32)}
    few, many = peak_memory(matmuls(1, size), feeds), peak_memory(matmuls(9, size), feeds)
    weights = 8 * 4 * size * size
    assert 0 < few < 60 * MIB < ballast.nbytes
    assert weights <= many - few <= 4 * weights


def test_a_refused_model_is_a_typed_error() -> None:
    feeds = {"x": np.ones((1, 4), np.float32)}
    with pytest.raises(SessionError, match="probe"):
        peak_memory(scale()[:40], feeds)
    with pytest.raises(SessionError, match="probe"):
        peak_memory(scale(), {"z": feeds["x"]})


def test_a_run_that_does_not_end_is_a_typed_error() -> None:
    with pytest.raises(SessionError, match="did not finish"):
        peak_memory(scale(), {"x": np.ones((1, 4), np.float32)}, timeout=0.01)


def test_a_probe_that_cannot_be_started_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(SessionError, match="could not be started: No such file"):
        peak_memory(scale(), {"x": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize("name", ["file", "args", "allow_pickle"])
def test_inputs_may_have_the_names_of_numpys_own_arguments(name: str) -> None:
    model = onnx.load_from_string(scale())
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    assert peak_memory(model.SerializeToString(), {name: np.ones((2, 4), np.float32)}) >= 0

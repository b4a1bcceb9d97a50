"""A `.npz` with any damaged byte is a typed error or still readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fxcompress.cli.specs import npz
from fxcompress.errors import InputError


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(8, 3)), y=np.arange(8))
    return path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 0.999), noise=st.binary(min_size=1, max_size=4), cut=st.booleans())
@example(position=0.2, noise=b"\xff\xff\xff\xff", cut=False)
def test_damage_is_a_typed_error(compressed: Path, position: float, noise: bytes, cut: bool) -> None:
    data = compressed.read_bytes()
    at = int(position * len(data))
    path = compressed.with_name("damaged.npz")
    path.write_bytes(data[:at] if cut else data[:at] + noise + data[at + len(noise) :])
    try:
        arrays = npz(path)
    except InputError:
        return
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(InputError, match="not a .npz file"):
        npz(tmp_path / "a.npy")

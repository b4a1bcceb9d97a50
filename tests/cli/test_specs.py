"""What MODEL, --calibration and --evaluate may name, and what each mistake is told."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import pytest
from torch import nn

from fxcompress.cli import specs
from fxcompress.errors import InputError

USER_CODE = """
import torch
from torch import nn

def model():
    return nn.Linear(3, 2).eval()

def with_example():
    return nn.Linear(3, 2).eval(), torch.randn(2, 3)

def three():
    return 1, 2, 3

def broken():
    raise RuntimeError("no weights here")

def batches():
    for _ in range(2):
        yield torch.zeros(2, 3)

def score(model):
    raise KeyError("label")

class Holder:
    @staticmethod
    def build():
        return nn.ReLU()

number = 3
"""


@pytest.fixture
def users_folder(tmp_path, monkeypatch) -> Path:
    """The current folder holds a module of the user's; nothing of it stays imported."""
    (tmp_path / "users_module.py").write_text(USER_CODE)
    (tmp_path / "users_broken.py").write_text("import users_missing_dependency\n")
    (tmp_path / "users_syntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("users_")]:
        del sys.modules[name]


def test_a_callable_returns_the_model_or_the_model_and_its_inputs(users_folder) -> None:
    assert isinstance(specs.given_model("users_module:model", trust=False).model, nn.Linear)
    given = specs.given_model("users_module:with_example", trust=False)
    assert isinstance(given.model, nn.Linear)
    assert given.example_inputs.shape == (2, 3)
    assert isinstance(specs.given_model("users_module:Holder.build", trust=False).model, nn.ReLU)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("users_module:three", "returned 3 values"),
        ("users_module:broken", "RuntimeError: no weights here"),
        ("users_module:absent", "has no 'absent'"),
        ("users_module:number", "not a callable"),
        ("users_nowhere:model", "no module named 'users_nowhere'"),
        ("users_broken:model", "users_missing_dependency"),
        ("users_syntax:model", "SyntaxError"),
        ("absent.fxc", "no such file"),
        ("absent.pt2", "no such file"),
    ],
)
def test_mistakes_are_typed_errors(users_folder, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        specs.given_model(spec, trust=False)


def test_an_error_in_the_users_code_names_the_line(users_folder) -> None:
    with pytest.raises(InputError) as caught:
        specs.given_model("users_module:broken", trust=False)
    assert caught.value.source == 'users_module.py:15: raise RuntimeError("no weights here")'


@pytest.mark.parametrize("spec", ["model", ":f", "m:"])
def test_a_spec_of_no_known_form_is_wrong_usage(spec: str) -> None:
    with pytest.raises(click.BadParameter):
        specs.given_model(spec, trust=False)


@pytest.mark.parametrize("spec", ["model.onnx", "weights.pth", "weights.safetensors"])
def test_a_file_that_holds_no_model_is_told_so(spec: str) -> None:
    with pytest.raises(InputError, match="cannot be compressed") as caught:
        specs.given_model(spec, trust=False)
    assert ".pt2" in (caught.value.hint or "")


def test_dynamic_dimensions_are_gathered_by_input() -> None:
    found = specs.dynamic_shapes(["ids:1=sequence", "ids:-2=batch", "mask:1=sequence"])
    assert found == {"ids": {1: "sequence", -2: "batch"}, "mask": {1: "sequence"}}
    assert specs.dynamic_shapes([]) is None


@pytest.mark.parametrize("items", [["ids"], ["ids:1"], ["ids:x=s"], [":1=s"], ["ids:1="], ["a:1=s", "a:1=t"]])
def test_a_dynamic_dimension_of_another_form_is_wrong_usage(items: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        specs.dynamic_shapes(items)


def test_npz_becomes_batches_by_input_name_and_can_be_read_twice(tmp_path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(10.0).reshape(5, 2), mask=np.ones(5))
    data = specs.calibration(str(tmp_path / "data.npz"), 2)
    for _ in range(2):
        batches = list(data)
        assert [len(batch["x"]) for batch in batches] == [2, 2, 1]
        assert batches[2]["x"].tolist() == [[8.0, 9.0]]
        assert set(batches[0]) == {"x", "mask"}


def test_one_array_without_a_name_is_the_one_input(tmp_path) -> None:
    np.savez(tmp_path / "data.npz", np.arange(10.0).reshape(5, 2))
    assert [batch.tolist()[0] for batch in specs.calibration(str(tmp_path / "data.npz"), 3)] == [
        [0, 1],
        [6, 7],
    ]


def test_a_generator_function_is_called_for_every_reading(users_folder) -> None:
    data = specs.calibration("users_module:batches", 32)
    assert [len(list(data)) for _ in range(2)] == [2, 2]


def test_an_error_in_the_users_metric_names_the_line(users_folder) -> None:
    with pytest.raises(InputError, match="KeyError") as caught:
        specs.metric("users_module:score")(None)
    assert caught.value.source == 'users_module.py:22: raise KeyError("label")'


def test_npz_mistakes_are_typed_errors(tmp_path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("not a zip")
    uneven = tmp_path / "uneven.npz"
    np.savez(uneven, x=np.ones(3), y=np.ones(2))
    empty = tmp_path / "empty.npz"
    np.savez(empty, x=np.ones((0, 3)))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{"a": 1}], dtype=object))
    for path, message in [
        (text, "not a .npz"),
        (uneven, "different lengths"),
        (empty, "no sample"),
        (pickled, "not a .npz file of plain arrays"),
        (tmp_path / "absent.npz", "no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            specs.calibration(str(path), 2)

"""Archives that are damaged, foreign or carry code: always a typed error, never another, never a run."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fxcompress.errors import CompressError, InputError, NotSupported, UnsafeFile
from fxcompress.graph.archive import load, save
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from tests.graph.archives import ENTRIES, assert_equal, entries, rewrite, small


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "none.fxc")
    (tmp_path / "text.fxc").write_text("hello")
    with pytest.raises(InputError, match="not a .fxc file"):
        load(tmp_path / "text.fxc")
    with zipfile.ZipFile(tmp_path / "other.fxc", "w") as archive:
        archive.writestr("model.py", "print()")
    with pytest.raises(InputError, match="not a .fxc file"):
        load(tmp_path / "other.fxc")


def test_save_into_nowhere_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save(small(), tmp_path / "missing" / "a.fxc")
    (tmp_path / "folder.fxc").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save(small(), tmp_path / "folder.fxc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.fxc"]


def test_an_operator_outside_the_list_is_not_saved(tmp_path: Path) -> None:
    copy = small().copy()
    node = next(n for n in copy.graph.nodes if n.op == "call_function")
    node.target = os.system
    with pytest.raises(NotSupported, match="cannot be stored"):
        save(copy, tmp_path / "a.fxc")
    assert not list(tmp_path.iterdir())


def edited(path: Path, edit: Any) -> Path:
    document = json.loads(entries(path)["program.json"])
    edit(document)
    return rewrite(path, {"program.json": json.dumps(document).encode()})


def _call(document: dict[str, Any]) -> dict[str, Any]:
    return next(node for node in document["nodes"] if node["op"] == "call_function")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "operator.methodcaller",
        "operator.attrgetter",
        "torch.load",
        "aten.from_file.default",
        "aten.save.default",
        "aten.__class__.mro",
        "aten.conv2d.__init__",
        "aten.conv2d.op",
        "_C._jit.default",
        "prim.PythonOp.default",
        "math.__loader__",
        "aten.conv2d.default\n",
        "higher_order.cond.default",
    ],
)
def test_unknown_targets_are_unsafe(tmp_path: Path, target: str) -> None:
    save(small(), tmp_path / "a.fxc")
    with pytest.raises(UnsafeFile, match="not an operator"):
        load(edited(tmp_path / "a.fxc", lambda document: _call(document).update(target=target)))


def test_extra_entries_are_unsafe(tmp_path: Path) -> None:
    save(small(), tmp_path / "a.fxc")
    with pytest.raises(UnsafeFile, match=r"payload\.pkl"):
        load(rewrite(tmp_path / "a.fxc", {"payload.pkl": b"cos\nsystem\n"}))


def _rename_input(document: dict[str, Any]) -> None:
    document["inputs"][0] = document["nodes"][0]["name"] = "x=__import__('os')"


def _keyword_argument(document: dict[str, Any]) -> None:
    document["in_spec"]["tuple"][1]["dict"][0][0] = "x=__import__('os')"


BREAKAGES = {
    "code in an input name": _rename_input,
    "code in a node name": lambda d: _call(d).update(name="a\nimport os"),
    "code in an argument name": _keyword_argument,
    "code in a keyword": lambda d: _call(d).update(kwargs={"a=1, b": 1}),
    "a quote in a tensor name": lambda d: d["tensors"][0].update(name='a"+b'),
    "a keyword as a name": lambda d: _call(d).update(name="lambda"),
    "a name twice": lambda d: _call(d).update(name=d["nodes"][0]["name"]),
    "a node that is not there": lambda d: _call(d).update(args=[{"node": "nobody"}]),
    "an unknown argument kind": lambda d: _call(d).update(args=[{"eval": "1"}]),
    "an unknown dtype": lambda d: _call(d).update(args=[{"dtype": "load"}]),
    "an odd device": lambda d: _call(d).update(args=[{"device": "cpu; 1"}]),
    "another op": lambda d: _call(d).update(op="call_module"),
    "no output": lambda d: d["nodes"].pop(),
    "a missing tensor": lambda d: d["tensors"].pop(0),
    "a tie to nothing": lambda d: d["tensors"][0].update(tied="nobody"),
    "impossible strides": lambda d: d["tensors"][0].update(stride=[10**15, 1, 1, 1]),
    "overlapping strides": lambda d: d["tensors"][0].update(stride=[0, 0, 0, 0]),
    "wrong arguments": lambda d: _call(d).update(args=[]),
    "fewer outputs": lambda d: d["outputs"].pop(),
    "a class as structure": lambda d: d.update(out_spec={"collections.defaultdict": []}),
    "another format": lambda d: d.update(format="zip"),
    "a later version": lambda d: d.update(version=99),
    "inputs out of order": lambda d: d["inputs"].reverse(),
    "a dynamic dimension too many": lambda d: d["dynamic"].append(["x", [[9, "batch"]]]),
    "a tensor that shadows a method": lambda d: d["tensors"][0].update(name="forward"),
    "notes that are no text": lambda d: d.update(notes=[1]),
    "newlines in a source line": lambda d: d["frames"][0].__setitem__(3, "x\nimport os"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_documents_that_break_the_format(tmp_path: Path, breakage: str) -> None:
    save(small(), tmp_path / "a.fxc")
    with pytest.raises(CompressError) as caught:
        load(edited(tmp_path / "a.fxc", BREAKAGES[breakage]))
    assert "changed_a.fxc" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 7, b"{}", b"\xff" * 200, b"\x08\x00\x00\x00\x00\x00\x00\x7f{}"]
)
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_noise(tmp_path: Path, name: str, data: bytes) -> None:
    save(small(), tmp_path / "a.fxc")
    with pytest.raises(InputError):
        load(rewrite(tmp_path / "a.fxc", {name: data}))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.fxc"
    torch.manual_seed(0)
    save(capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3)), path)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_or_missing_byte_is_found_or_harmless(tiny: Path, data: st.DataObject) -> None:
    original = tiny.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    noise = data.draw(st.binary(min_size=1, max_size=4))
    changed = {
        "flip": original[:position] + noise + original[position + len(noise) :],
        "cut": original[:position],
        "insert": original[:position] + noise + original[position:],
        "drop": original[:position] + original[position + len(noise) :],
    }[kind]
    path = tiny.with_name("changed.fxc")
    path.write_bytes(changed)
    try:
        loaded = load(path)
    except CompressError:
        return
    assert_equal(load(tiny), loaded)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.just(10**30),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["x", "relu", "self", "training", "aten.add.Tensor", "output", "", "*"]),
    st.just([]),
    st.just({}),
    st.just([[1]]),
    st.just({"node": "x"}),
    st.just({"tuple": ["*"]}),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_value_is_a_typed_error_or_a_program(tiny: Path, data: st.DataObject) -> None:
    document = json.loads(entries(tiny)["program.json"])
    holder: Any = document
    key: Any = data.draw(st.sampled_from(sorted(document)))
    while isinstance(holder[key], list | dict) and holder[key] and data.draw(st.integers(0, 4)):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(JUNK)
    path = rewrite(tiny, {"program.json": json.dumps(document).encode()})
    try:
        loaded = load(path)
    except CompressError:
        return
    assert isinstance(loaded, Program)

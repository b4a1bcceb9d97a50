"""Screening `.pt2` files: what torch writes passes, what would run code is refused without running it."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxcompress.errors import InputError, UnsafeFile
from fxcompress.graph.capture import capture
from fxcompress.graph.screen import screen_pt2
from tests.architectures.catalog import by_name

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # torch warns that loading runs code, which we show


class Sized(nn.Module):
    """Sizes in every form: computed, guarded, of two dynamic inputs, in dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor, target: torch.Tensor, *, name: dict[str, torch.Tensor]) -> Any:
        y = self.norm(self.conv(x)).mean((2, 3))
        y = y.reshape(x.shape[0] * 2, 2).reshape(x.shape[0], 4)
        z = target[:, : target.shape[1] // 2] * self.scale
        return {"out": y + name["shift"], "half": z, "all": [torch.cat([z, z], 1)]}


def write(path: Path) -> Path:
    torch.manual_seed(0)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=4, max=99)
    exported = torch.export.export(
        Sized().eval(),
        (torch.randn(2, 3, 8, 8), torch.randn(2, 8)),
        {"name": {"shift": torch.randn(4)}},
        dynamic_shapes={"x": {0: batch}, "target": {0: batch, 1: 2 * length}, "name": {"shift": None}},
    )
    torch.export.save(exported, path)
    return path


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pt2") / "model.pt2")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that every payload would make."""
    return tmp_path / "it_ran"


def rewrite(path: Path, target: Path, changed: dict[str, bytes]) -> Path:
    """A copy of a `.pt2` with other records, as torch's reader takes it; names are relative to the folder."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
        root = archive.namelist()[0].split("/")[0]
    records.update({f"{root}/{name}": data for name, data in changed.items()})
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return target


def read_json(path: Path, record: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{path.stem}/{record}"))


def edited(path: Path, target: Path, record: str, edit: Callable[[Any], Any]) -> Path:
    document = read_json(path, record)
    edit(document)
    return rewrite(path, target, {record: json.dumps(document).encode()})


class Payload:
    """Unpickles by making the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_what_torch_writes_passes(benign: Path) -> None:
    screen_pt2(benign)
    program = capture(benign)
    assert program.signature.dynamic["x"]


@pytest.mark.parametrize("name", ["unet", "vit_packed", pytest.param("hf_bert", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_exported_architectures_pass(name: str, tmp_path: Path) -> None:
    architecture = by_name(name)
    inputs = architecture.example()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    exported = torch.export.export(
        architecture.build(), args, kwargs, dynamic_shapes=architecture.dynamic_shapes
    )
    torch.export.save(exported, tmp_path / "a.pt2")
    screen_pt2(tmp_path / "a.pt2")
    torch.export.save(exported.run_decompositions(), tmp_path / "b.pt2")
    screen_pt2(tmp_path / "b.pt2")


# Payloads. Each is first shown to work: torch.export.load (or the module made from it) runs it.


def in_sample_inputs(benign: Path, target: Path, marker: Path) -> Path:
    return rewrite(benign, target, {"data/sample_inputs/model.pt": pickled(((Payload(marker),), {}))})


def in_an_expression(benign: Path, target: Path, marker: Path) -> Path:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def edit(document: Any) -> None:
        values = document["graph_module"]["graph"]["sym_int_values"]
        next(iter(values.values()))["as_expr"]["expr_str"] = code

    return edited(benign, target, "models/model.json", edit)


def in_a_weight(benign: Path, target: Path, marker: Path) -> Path:
    config = read_json(benign, "data/weights/model_weights_config.json")
    config["config"]["conv.bias"]["use_pickle"] = True
    path = config["config"]["conv.bias"]["path_name"]
    changed = {
        "data/weights/model_weights_config.json": json.dumps(config).encode(),
        f"data/weights/{path}": pickled(Payload(marker)),
    }
    return rewrite(benign, target, changed)


def in_a_constant(benign: Path, target: Path, marker: Path) -> Path:
    config = read_json(benign, "data/constants/model_constants_config.json")
    entry = {"path_name": "tensor_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    config["config"]["c"] = entry
    changed = {
        "data/constants/model_constants_config.json": json.dumps(config).encode(),
        "data/constants/tensor_0": pickled(Payload(marker)),
    }
    return rewrite(benign, target, changed)


def in_a_guard(benign: Path, target: Path, marker: Path) -> Path:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() is None"
    return edited(benign, target, "models/model.json", lambda d: d.update(guards_code=[code]))


PAYLOADS = [
    in_sample_inputs, in_an_expression, in_a_weight, in_a_constant, in_a_guard,
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda f: f.__name__)
def test_payloads_are_refused_without_running(
    benign: Path, tmp_path: Path, marker: Path, payload: Callable[[Path, Path, Path], Path]
) -> None:
    path = payload(benign, tmp_path / "model.pt2", marker)
    with pytest.raises(UnsafeFile, match=r"model\.pt2: ") as caught:
        screen_pt2(path)
    assert "trust=True" in str(caught.value)
    with pytest.raises(UnsafeFile):
        capture(path)
    assert not marker.exists()


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda f: f.__name__)
def test_payloads_would_run(
    benign: Path, tmp_path: Path, marker: Path, payload: Callable[[Path, Path, Path], Path]
) -> None:
    path = payload(benign, tmp_path / "model.pt2", marker)
    with contextlib.suppress(Exception):  # most payloads break the file after having run
        torch.export.load(path).module()(
            torch.randn(2, 3, 8, 8), torch.randn(2, 8), name={"shift": torch.zeros(4)}
        )
    assert marker.exists()


# Everything else that does not belong in a file of plain data


def _node(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"][0]


def _argument_name(document: Any) -> None:
    _call(document)["forward_arg_names"] = ["x, target, name=__import__('os')"]


def _argument_names_as_a_dict(document: Any) -> None:
    _call(document)["forward_arg_names"] = {"x=__import__('os')": 1}


def _call(document: Any) -> Any:
    return document["graph_module"]["module_call_graph"][0]["signature"]


def _custom_object(document: Any) -> None:
    graph = document["graph_module"]["graph"]
    graph["custom_obj_values"] = {"a": {"name": "a", "class_fqn": "__torch__.torch.classes.x.Y"}}


def _spec(kind: str, context: Any) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": []}])


EDITS: dict[str, Callable[[Any], Any]] = {
    "a target in torch": lambda d: _node(d).update(target="torch.hub.load"),
    "a target in operator": lambda d: _node(d).update(target="_operator.methodcaller"),
    "a target that maps files": lambda d: _node(d).update(target="torch.ops.aten.from_file.default"),
    "a registered extension": lambda d: _node(d).update(target="#evil:x"),
    "code in a node name": lambda d: _node(d).update(name="a\nimport os"),
    "code in a parameter name": lambda d: d["graph_module"]["signature"]["input_specs"][0][
        "parameter"
    ].update(parameter_name='a"), print("'),
    "a carriage return in a comment": lambda d: _node(d)["metadata"].update(stack_trace="x\rimport os"),
    "code in an argument name": _argument_name,
    "code in a dict of argument names": _argument_names_as_a_dict,
    "code in a dict of guards": lambda d: d.update(guards_code={"__import__('os')": 1}),
    "a custom object": _custom_object,
    "an operator argument": lambda d: _node(d)["inputs"][0].update(arg={"as_operator": "torch.load"}),
    "an imported enum": lambda d: _call(d).update(
        in_spec=_spec("builtins.dict", '{"\\u005f_enum__": 1, "fqn": "antigravity:x", "name": "y"}')
    ),
    "an imported factory": lambda d: _call(d).update(
        out_spec=_spec(
            "collections.defaultdict", {"default_factory_module": "os", "default_factory_name": "system"}
        )
    ),
    "a million symbols": lambda d: d["range_constraints"].update(u999999999999={"min_val": 0, "max_val": 1}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_models_with_more_than_data_are_refused(benign: Path, tmp_path: Path, edit: str) -> None:
    path = edited(benign, tmp_path / "model.pt2", "models/model.json", EDITS[edit])
    with pytest.raises(UnsafeFile, match="models/model.json"):
        screen_pt2(path)


@pytest.mark.parametrize(
    "record",
    [
        "data/aotinductor/model/a.so",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "executorch/x.pte",
    ],
)
def test_compiled_and_custom_records_are_refused(benign: Path, tmp_path: Path, record: str) -> None:
    path = rewrite(benign, tmp_path / "model.pt2", {record: b"\x7fELF"})
    with pytest.raises(UnsafeFile, match="not part of an exported program"):
        screen_pt2(path)


def test_a_claimed_size_without_bytes_is_refused(benign: Path, tmp_path: Path) -> None:
    def edit(document: Any) -> None:
        document["config"]["conv.bias"]["tensor_meta"]["sizes"] = [{"as_int": 10**12}]

    path = edited(benign, tmp_path / "model.pt2", "data/weights/model_weights_config.json", edit)
    name = read_json(benign, "data/weights/model_weights_config.json")["config"]["conv.bias"]["path_name"]
    with pytest.raises(UnsafeFile, match="claims a size"):
        screen_pt2(rewrite(path, tmp_path / "b.pt2", {f"data/weights/{name}": b""}))


@pytest.mark.parametrize("name", ["../../etc/x", "other/version", "model/../../x"])
def test_entries_outside_the_folder_are_refused(benign: Path, tmp_path: Path, name: str) -> None:
    target = rewrite(benign, tmp_path / "model.pt2", {})
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError):
        screen_pt2(target)


def test_compressed_entries_are_refused(benign: Path, tmp_path: Path) -> None:
    target = rewrite(benign, tmp_path / "model.pt2", {})
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/zeros", bytes(1_000_000))
    with pytest.raises(UnsafeFile, match="compressed"):
        screen_pt2(target)


def test_duplicate_entries_are_refused(benign: Path, tmp_path: Path) -> None:
    target = rewrite(benign, tmp_path / "model.pt2", {})
    with zipfile.ZipFile(target, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/models/model.json", b"{}")
    with pytest.raises(UnsafeFile, match="twice"):
        screen_pt2(target)


def test_files_that_are_no_pt2(benign: Path, tmp_path: Path) -> None:
    cases = {
        "empty.pt2": b"",
        "text.pt2": b"a model",
        "truncated.pt2": benign.read_bytes()[:-300],
        "weights.pt2": pickled({"a": torch.ones(1)}),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=r"not a \.pt2 file") as caught:
            screen_pt2(tmp_path / name)
        assert not isinstance(caught.value, UnsafeFile)
        assert "torch.export.save" in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        screen_pt2(tmp_path / "missing.pt2")
    with pytest.raises(InputError, match="damaged"):
        screen_pt2(rewrite(benign, tmp_path / "json.pt2", {"models/model.json": b"{"}))

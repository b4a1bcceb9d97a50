"""The `.fxc` archive: exact round trips, a fresh process, and files that are damaged or carry code."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import CompressError, InputError, NotSupported, UnsafeFile
from fxcompress.graph import codec, walk
from fxcompress.graph.archive import load, save
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from tests.architectures.programs import captured

ROOT = Path(__file__).parents[2]
ENTRIES = ["program.json", "tensors.safetensors", "example.safetensors"]


class Small(nn.Module):
    """A convolution, a batch norm, tied weights and a symbolic reshape; takes and returns structures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.embed = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor, *, extra: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = self.norm(self.conv(x)).relu().mean((2, 3))
        y = self.head(self.embed(y) + extra["shift"]).masked_fill(y > 3, float("-inf"))
        pairs = y.reshape(x.shape[0] * 2, 2)
        return {"logits": y, "pairs": (pairs, pairs * 0.1)}


@pytest.fixture(scope="module")
def small() -> Program:
    torch.manual_seed(0)
    model = Small().eval()
    model.conv.weight.requires_grad_(False)
    model.conv.to(memory_format=torch.channels_last)
    inputs = {"x": torch.randn(2, 3, 6, 6), "extra": {"shift": torch.randn(4)}}
    program = capture(model, inputs)
    program.notes.append("a note, in ünicode")
    program.history.append("captured")
    return program


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, changed: dict[str, bytes]) -> Path:
    """A copy of an archive with other entries, checksums right."""
    contents = {**entries(path), **changed}
    target = path.with_name(f"changed_{path.name}")
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return target


def leaves(program: Program, batch: Program | None = None) -> list[torch.Tensor]:
    example = (batch or program).example
    with torch.no_grad():
        return pytree.tree_leaves(program(*example.args, **example.kwargs))


def assert_equal(a: Program, b: Program) -> None:
    assert str(a) == str(b)
    assert (a.notes, a.history, a.training) == (b.notes, b.history, b.training)
    assert a.signature == b.signature
    left, right = a.module.state_dict(keep_vars=True), b.module.state_dict(keep_vars=True)
    assert list(left) == list(right)
    for name, tensor in left.items():
        other = right[name]
        assert type(tensor) is type(other), name
        assert (tensor.dtype, tensor.requires_grad) == (other.dtype, other.requires_grad), name
        assert torch.equal(tensor, other), name
    assert [walk.source(n) for n in a.graph.nodes] == [walk.source(n) for n in b.graph.nodes]
    assert [walk.module_path(n) for n in a.graph.nodes] == [walk.module_path(n) for n in b.graph.nodes]
    for x, y in zip(leaves(a), leaves(b, a), strict=True):
        assert torch.equal(x, y)


def test_round_trip_is_exact(small: Program, tmp_path: Path) -> None:
    first, second = tmp_path / "a.fxc", tmp_path / "b.fxc"
    small.save(first)
    loaded = load(first)
    assert_equal(small, loaded)
    save(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    assert list(entries(first)) == ENTRIES


def test_strides_and_ties_survive(small: Program, tmp_path: Path) -> None:
    save(small, tmp_path / "a.fxc")
    module = load(tmp_path / "a.fxc").module
    weight = module.get_parameter("conv.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")
    stored = entries(tmp_path / "a.fxc")["tensors.safetensors"]
    assert b'"embed.weight"' in stored
    assert b'"head.weight"' not in stored


@pytest.mark.parametrize("name", ["resnet_basic", "vit_packed", "hf_bert"])
def test_round_trip_of_architectures(name: str, tmp_path: Path) -> None:
    program = captured(name)
    save(program, tmp_path / "a.fxc")
    loaded = load(tmp_path / "a.fxc")
    assert_equal(program, loaded)
    save(loaded, tmp_path / "b.fxc")
    assert (tmp_path / "a.fxc").read_bytes() == (tmp_path / "b.fxc").read_bytes()


class Zoo(nn.Module):
    """Every element type, a scalar, an empty tensor, a transposed and an expanded one."""

    def __init__(self) -> None:
        super().__init__()
        for dtype in ("int8", "uint8", "int32", "int64", "float16", "bfloat16", "float64"):
            self.register_buffer(f"a_{dtype}", torch.arange(3).to(getattr(torch, dtype)))
        self.register_buffer("boolean", torch.tensor([True, False, True]))
        self.register_buffer("scalar", torch.tensor(0.1))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("expanded", torch.ones(1).expand(3))
        self.register_buffer("part", torch.arange(10.0)[2:5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, buffer in self.named_buffers():
            if name == "transposed":
                x = x + (x.float() @ buffer).sum()
            elif name == "empty":
                x = x + torch.cat([x[0], buffer]).sum()
            else:
                x = x + buffer
        q = torch.ops.quantized_decomposed
        y = x.float()
        quantized = q.quantize_per_tensor(y, 0.1, 3, 0, 255, torch.uint8)
        return q.dequantize_per_tensor(quantized, 0.1, 3, 0, 255, torch.uint8) + y.clamp(min=-math.inf)


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    program = capture(Zoo().eval(), torch.randn(2, 3))
    save(program, tmp_path / "zoo.fxc")
    loaded = load(tmp_path / "zoo.fxc")
    assert_equal(program, loaded)
    assert loaded.module.get_buffer("transposed").stride() == (1, 3)
    assert any(
        str(node.target) == "quantized_decomposed.quantize_per_tensor.default" for node in loaded.graph.nodes
    )


def test_training_mode_is_kept_and_training_works(small: Program, tmp_path: Path) -> None:
    copy = small.copy(share=False).train()
    save(copy, tmp_path / "a.fxc")
    loaded = load(tmp_path / "a.fxc")
    assert loaded.training
    before = loaded.module.get_buffer("norm.running_mean").clone()
    weight = loaded.module.get_parameter("head.weight")
    start = weight.detach().clone()
    optimizer = torch.optim.SGD((p for p in loaded.module.parameters() if p.requires_grad), 0.1)
    out = loaded(*loaded.example.args, **loaded.example.kwargs)
    out["logits"].clamp(min=-1e3).square().sum().backward()
    optimizer.step()
    assert loaded.module.get_parameter("conv.weight").grad is None
    assert not torch.equal(weight, start)
    assert not torch.equal(before, loaded.module.get_buffer("norm.running_mean"))
    assert not loaded.eval().training


def test_shapes_stay_dynamic(small: Program, tmp_path: Path) -> None:
    save(small, tmp_path / "a.fxc")
    loaded = load(tmp_path / "a.fxc")
    assert small.signature.dynamic["x"] == loaded.signature.dynamic["x"] == {0: "batch"}
    inputs = {"x": torch.randn(5, 3, 6, 6), "extra": {"shift": torch.randn(4)}}
    with torch.no_grad():
        assert torch.equal(small(**inputs)["pairs"][0], loaded(**inputs)["pairs"][0])
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        loaded.module, (), inputs, dynamic_shapes={"x": {0: batch}, "extra": {"shift": None}}
    )
    assert exported.module()(**{**inputs, "x": torch.randn(7, 3, 6, 6)})["pairs"][0].shape == (14, 2)


FRESH = """
import sys
sys.modules["tests"] = sys.modules["transformers"] = None
import torch
from fxcompress.graph.archive import load
program = load(sys.argv[1])
with torch.no_grad():
    out = program(*program.example.args, **program.example.kwargs)
torch.save([t for t in torch.utils._pytree.tree_leaves(out)], sys.argv[2])
print(program)
"""


def test_loads_in_a_fresh_process_without_the_model(tmp_path: Path) -> None:
    program = captured("hf_bert")
    save(program, tmp_path / "a.fxc")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "a.fxc"), str(tmp_path / "out.pt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(program)
    for mine, theirs in zip(leaves(program), torch.load(tmp_path / "out.pt"), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_path_of_this_machine_is_stored(small: Program, tmp_path: Path) -> None:
    save(small, tmp_path / "a.fxc")
    data = (tmp_path / "a.fxc").read_bytes()
    assert b"test_archive.py" in data
    for folder in (str(ROOT), str(Path(torch.__file__).parent), str(tmp_path)):
        assert folder.encode() not in data


# Files that are not what they should be


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


def test_save_into_nowhere_leaves_nothing(small: Program, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save(small, tmp_path / "missing" / "a.fxc")
    (tmp_path / "folder.fxc").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save(small, tmp_path / "folder.fxc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.fxc"]


def test_an_operator_outside_the_list_is_not_saved(small: Program, tmp_path: Path) -> None:
    copy = small.copy()
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
def test_unknown_targets_are_unsafe(small: Program, tmp_path: Path, target: str) -> None:
    save(small, tmp_path / "a.fxc")
    with pytest.raises(UnsafeFile, match="not an operator"):
        load(edited(tmp_path / "a.fxc", lambda document: _call(document).update(target=target)))


def test_extra_entries_are_unsafe(small: Program, tmp_path: Path) -> None:
    save(small, tmp_path / "a.fxc")
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
def test_documents_that_break_the_format(small: Program, tmp_path: Path, breakage: str) -> None:
    save(small, tmp_path / "a.fxc")
    with pytest.raises(CompressError) as caught:
        load(edited(tmp_path / "a.fxc", BREAKAGES[breakage]))
    assert "changed_a.fxc" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 7, b"{}", b"\xff" * 200, b"\x08\x00\x00\x00\x00\x00\x00\x7f{}"]
)
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_noise(small: Program, tmp_path: Path, name: str, data: bytes) -> None:
    save(small, tmp_path / "a.fxc")
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


# The codec by itself

VALUES = [
    None, True, 3, -0.0, 0.1, 1e-300, math.inf, -math.inf, "text", [1, [2.0, None]], (1, (2,)), {"a": (1,)},
    slice(0, None, 2), 1 + 2j, torch.float16, torch.device("cpu"), torch.device("cuda:1"), torch.strided,
    torch.channels_last, (), [], 2**62,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_arguments_read_back_exactly(value: Any) -> None:
    text = json.dumps(codec.encode_argument(value), allow_nan=False)
    read = codec.decode_argument(json.loads(text), {})
    assert type(read) is type(value)
    assert read == value
    assert repr(read) == repr(value)


def test_nan_and_nodes_read_back() -> None:
    node = fx.Graph().placeholder("x")
    read = codec.decode_argument(codec.encode_argument([node, math.nan]), {"x": node})
    assert read[0] is node
    assert math.isnan(read[1])


@pytest.mark.parametrize(
    "tree",
    [0, (), (0,), [0, (0, {"a": 0})], ((), {"b": 0, "a": [0]}), {1: 0}],
    ids=repr,
)
def test_structures_read_back_exactly(tree: Any) -> None:
    spec = pytree.tree_structure(tree)
    assert codec.decode_spec(json.loads(json.dumps(codec.encode_spec(spec)))) == spec

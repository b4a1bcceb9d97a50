"""Bad input: each mistake is a typed error that says what to do, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxcompress
from fxcompress.cli.main import main
from fxcompress.errors import BudgetError, CaptureError, CompressError, InputError, NotSupported, UnsafeFile

CROSSED = "the payload ran"


class Net(nn.Module):
    """Small, prunable, quantizable."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y if y.sum() > 0 else -y


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(Path(os.environ["FXCOMPRESS_TEST_MARK"])),))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8)


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def batch_with_nan() -> list[Tensor]:
    broken = images()
    broken[1, 2, 3, 3] = float("nan")
    return [images(), broken]


def exhausted() -> Iterator[Tensor]:
    batches = iter([images()])
    next(batches)
    return batches


WRONG_ARGUMENTS = [
    ("prune above one", {"prune": 1.5}, InputError, "1.5"),
    ("prune zero", {"prune": 0.0}, InputError, "0"),
    ("prune negative", {"prune": -0.5}, InputError, "-0.5"),
    ("prune of the wrong type", {"prune": "half"}, InputError, "half"),
    ("unreachable budget", {"prune": 0.999}, BudgetError, "down to"),
    ("int8 without data", {"quantize": "int8"}, InputError, "calibration"),
    ("unknown precision", {"quantize": "int3"}, CompressError, "int3"),
    ("NaN in calibration", {"quantize": "int8", "calibration": batch_with_nan()}, InputError, "NaN"),
    ("empty calibration", {"quantize": "int8", "calibration": []}, InputError, "no batch"),
    ("exhausted calibration", {"quantize": "int8", "calibration": exhausted()}, InputError, "exhausted"),
    ("one tensor as calibration", {"quantize": "int8", "calibration": images()}, InputError, r"\[batch\]"),
    (
        "wrong shape in calibration",
        {"quantize": "int8", "calibration": [torch.randn(2, 1, 8, 8)]},
        InputError,
        "shape",
    ),
    ("unknown target", {"target": "abacus"}, CompressError, "abacus"),
    ("unknown objective", {"objective": "beauty"}, CompressError, "beauty"),
    ("opset from the future", {"opset": 999}, CompressError, "999"),
    ("no thread", {"threads": 0}, InputError, "threads"),
    ("no sample", {"batch": 0}, InputError, "batch"),
    ("recovery is not built", {"recover": object()}, NotSupported, "recover"),
]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [case[1:] for case in WRONG_ARGUMENTS],
    ids=[case[0] for case in WRONG_ARGUMENTS],
)
def test_wrong_argument(
    net: nn.Module, arguments: dict[str, Any], kind: type[CompressError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        fxcompress.optimize(net, images(), **arguments)
    assert caught.value.hint, "the error must say what to do"


WRONG_MODELS = [
    ("control flow on data", Branching().eval(), torch.randn(2, 4), CaptureError),
    ("wrong example shape", Net().eval(), torch.randn(2, 5, 8, 8), InputError),
    ("wrong example type", Net().eval(), "an image", InputError),
    ("training mode", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), images(), InputError),
    ("no model", "a string that is no path", None, InputError),
    ("a class", Net, images(), InputError),
]


@pytest.mark.parametrize(
    ("model", "example", "kind"), [case[1:] for case in WRONG_MODELS], ids=[case[0] for case in WRONG_MODELS]
)
def test_wrong_model(model: Any, example: Any, kind: type[CompressError]) -> None:
    with pytest.raises(kind) as caught:
        fxcompress.optimize(model, example)
    assert caught.value.hint


def test_data_dependent_control_flow_names_the_users_line() -> None:
    with pytest.raises(CaptureError) as caught:
        fxcompress.capture(Branching().eval(), torch.randn(2, 4))
    assert "y.sum() > 0" in str(caught.value)


def test_a_model_without_a_prunable_group_says_so() -> None:
    with pytest.raises(InputError, match="prun") as caught:
        fxcompress.optimize(nn.Linear(4, 2).eval(), torch.randn(2, 4), prune=0.5)
    assert caught.value.hint


def test_inputs_that_cannot_be_inferred_are_asked_for() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    with pytest.raises(InputError, match="example") as caught:
        fxcompress.optimize(Opaque().eval())
    assert "example_inputs" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"just text", b"\x80\x04K\x01."])
@pytest.mark.parametrize("suffix", [".pt2", ".fxc"])
def test_a_file_that_is_not_one(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        fxcompress.capture(path) if suffix == ".pt2" else fxcompress.load(path)
    assert caught.value.hint


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a payload would make if it ran."""
    path = tmp_path / CROSSED
    monkeypatch.setenv("FXCOMPRESS_TEST_MARK", str(path))
    return path


def rewritten(path: Path, ending: str, content: bytes) -> Path:
    """A copy of a zip with the entry that ends so replaced."""
    other = path.with_name(f"bad{path.suffix}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as made:
        names = [name for name in source.namelist() if name.endswith(ending)]
        assert names, source.namelist()
        for name in source.namelist():
            made.writestr(name, content if name in names else source.read(name))
    return other


def test_pt2_with_a_payload_is_refused_and_does_not_run(net: nn.Module, tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (images(),)), path)
    torch.save(Bomb(), tmp_path / "bomb.pt")
    bad = rewritten(path, "model.pt", (tmp_path / "bomb.pt").read_bytes())
    with pytest.raises(UnsafeFile) as caught:
        fxcompress.capture(bad)
    assert "trust=True" in (caught.value.hint or "")
    assert not mark.exists()


def test_optimize_passes_trust_on(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (images(),)), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/data/more.so", b"code")
    with pytest.raises(UnsafeFile, match="more.so"):
        fxcompress.optimize(path)
    assert fxcompress.optimize(path, trust=True).report.proofs


def test_fxc_with_a_payload_is_refused_and_does_not_run(net: nn.Module, tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "net.fxc"
    fxcompress.capture(net, images()).save(path)
    with zipfile.ZipFile(path) as archive:
        graph = archive.read("program.json").decode()
    assert "aten.relu.default" in graph
    evil = rewritten(path, "program.json", graph.replace("aten.relu.default", "os.system").encode())
    with pytest.raises(UnsafeFile):
        fxcompress.load(evil)
    pickled = rewritten(path, ".safetensors", pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        fxcompress.load(pickled)
    assert not mark.exists()


def test_a_folder_that_cannot_be_written_gets_nothing(net: nn.Module, tmp_path: Path) -> None:
    result = fxcompress.optimize(net, images())
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for folder in (blocked, blocked / "below"):
        with pytest.raises(InputError) as caught:
            result.save(folder)
        assert caught.value.hint
    assert blocked.read_text() == "in the way"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_command_leaves_no_folder(net: nn.Module, tmp_path: Path) -> None:
    path, out = tmp_path / "net.fxc", tmp_path / "out"
    fxcompress.capture(net, images()).save(path)
    result = CliRunner().invoke(main, ["optimize", str(path), "-o", str(out), "--prune", "0.999", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["kind"] == "BudgetError"
    assert not out.exists()


def test_a_truncated_onnx_is_a_typed_error(net: nn.Module, tmp_path: Path) -> None:
    fxcompress.optimize(net, images()).save(tmp_path / "out")
    whole = (tmp_path / "out" / "model.onnx").read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        result = CliRunner().invoke(main, ["inspect", str(cut)])
        assert result.exit_code == 1, length
        assert "hint" in result.stderr
        assert "Traceback" not in result.output


def test_ids_beyond_the_table_name_the_operator() -> None:
    text = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    ids = torch.zeros(4, 6, dtype=torch.int64)
    with pytest.raises(InputError, match=r"embedding.* does not run on these inputs") as caught:
        fxcompress.optimize(text, ids[:2], prune=0.5, calibration=[ids, ids + 1000])
    assert "ids beyond a table" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "args", [(), (images(), images()), ([images()],), ("text",)], ids=["none", "two", "list", "text"]
)
def test_a_program_called_with_other_inputs_says_what_it_takes(net: nn.Module, args: tuple[Any, ...]) -> None:
    program = fxcompress.capture(net, images())
    with pytest.raises(InputError) as caught:
        program(*args)
    assert "[" in (caught.value.hint or "")


def test_calibration_that_does_not_fit_is_found_before_any_work(net: nn.Module) -> None:
    begun: list[str] = []
    with pytest.raises(InputError, match="shape"):
        fxcompress.optimize(
            net, images(), prune=0.5, calibration=[torch.zeros(2, 5, 8, 8)], progress=begun.append
        )
    assert begun == ["capture"]


def test_inputs_that_were_guessed_are_told(net: nn.Module) -> None:
    (note,) = fxcompress.capture(net).notes
    assert note.startswith("no example inputs were given: [2, 3, 32, 32] was taken, from first (Conv2d)")


def test_a_result_of_pruning_nothing_is_no_plan() -> None:
    with pytest.raises(InputError, match="prunes nothing"):
        fxcompress.optimize(nn.Linear(2, 2).eval(), torch.zeros(2, 2), prune=fxcompress.Plan())

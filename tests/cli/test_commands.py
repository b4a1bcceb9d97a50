"""The four commands as a person and a machine call them: output, exit codes, only JSON with --json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from fxcompress.analysis.groups import analyse
from fxcompress.cli.main import main
from fxcompress.graph.archive import save
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.lowering.write import save_model
from fxcompress.passes.loosening import loosened
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.runtime.session import open_session
from tests.architectures.programs import captured
from tests.report.test_contents import onnx_model

ROOT = Path(__file__).resolve().parents[2]
USER_CODE = """
import torch
from torch import nn

def build():
    print("users may print")
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval(), torch.randn(2, 3, 16, 16)

class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.encoder = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids)
        x = self.encoder(x + self.attention(x, x, x, need_weights=False)[0])
        weights = attention_mask.unsqueeze(-1).to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1)

def embedder():
    ids = torch.arange(12).reshape(2, 6)
    return Embedder().eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

def score(f):
    return float(f(torch.ones(3, 3, 16, 16)).shape[0])
"""


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: a module, calibration data, a program and two ONNX files."""
    made = tmp_path_factory.mktemp("user")
    (made / "cli_net.py").write_text(USER_CODE)
    np.savez(made / "images.npz", input=np.random.default_rng(0).standard_normal((8, 3, 16, 16), np.float32))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    capture(model, torch.randn(2, 3, 8, 8)).save(made / "net.fxc")
    (made / "a.onnx").write_bytes(onnx_model().SerializeToString())
    (made / "b.onnx").write_bytes(onnx_model(6, extra=True).SerializeToString())
    return made


@pytest.mark.parametrize("command", ["", "optimize", "inspect", "diff", "bench"])
def test_help_is_worth_reading(command: str) -> None:
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    assert "fxcompress " in result.output
    assert "xample" in result.output or "\n      fxcompress" in result.output or command == ""
    assert max(len(line) for line in result.output.splitlines()) <= 100


def test_inspect_program(folder: Path) -> None:
    result = invoke("inspect", folder / "net.fxc")
    assert result.exit_code == 0
    for word in ("conv2d", "0.weight[0]", "MACs per sample", "a model output"):
        assert word in result.stdout, word


def test_inspect_program_as_json(folder: Path) -> None:
    data = json.loads(invoke("inspect", folder / "net.fxc", "--json").stdout)
    assert data["kind"] == "program"
    assert [group["name"] for group in data["groups"]] == ["0.weight[0]"]


def test_inspect_pt2_and_the_program_it_becomes_are_the_same(folder: Path, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 8, 8),)), tmp_path / "net.pt2")
    result = invoke("inspect", tmp_path / "net.pt2")
    assert result.exit_code == 0
    assert "0.weight[0]" in result.stdout
    capture(tmp_path / "net.pt2").save(tmp_path / "net.fxc")
    assert "are the same" in invoke("diff", tmp_path / "net.pt2", tmp_path / "net.fxc").stdout


def test_inspect_why(folder: Path) -> None:
    result = invoke("inspect", folder / "net.fxc", "--why", "0.weight[0]", "2.weight[1]")
    assert result.exit_code == 0
    assert "relu" in result.stdout
    unrelated = invoke("inspect", folder / "net.fxc", "--why", "0.weight[1]", "2.weight[0]")
    assert "nothing couples" in unrelated.stdout
    path = json.loads(
        invoke("inspect", folder / "net.fxc", "--json", "--why", "0.weight[0]", "0.bias[0]").stdout
    )
    assert path["path"]


def test_inspect_takes_a_function_and_says_what_pruning_can_reach(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    result = invoke("inspect", "cli_net:build", "--no-graph")
    assert result.exit_code == 0
    assert "Prunability" in result.stdout
    assert "users may print" not in result.stdout
    data = json.loads(invoke("inspect", "cli_net:build", "--json").stdout)
    assert data["prunability"]["params"]["total"] == data["cost"]["params"]
    assert data["frozen"][0]["axis"] == "8.weight[0]"
    assert data["frozen"][0]["params"] == 10
    close = invoke("inspect", "cli_net:build", "--why", "0.weigth[0]", "3.weight[1]")
    assert close.exit_code == 1
    assert "did you mean '0.weight[0]'" in close.stderr


def test_inspect_onnx(folder: Path) -> None:
    result = invoke("inspect", folder / "b.onnx")
    assert result.exit_code == 0
    assert "MatMul" in result.stdout
    assert json.loads(invoke("inspect", folder / "b.onnx", "--json").stdout)["operators"] == {
        "MatMul": 1,
        "Relu": 1,
    }


def test_diff(folder: Path) -> None:
    result = invoke("diff", folder / "a.onnx", folder / "b.onnx")
    assert result.exit_code == 0
    assert "float32[3, 6]" in result.stdout
    same = json.loads(invoke("diff", folder / "net.fxc", folder / "net.fxc", "--json").stdout)
    assert same["equal"]
    mixed = json.loads(invoke("diff", folder / "net.fxc", folder / "a.onnx", "--json").stdout)
    assert mixed["tensors"]["added"].keys() == {"weight", "codes"}


def test_bench_counts_the_samples_that_it_runs(folder: Path) -> None:
    """A file with a fixed batch takes no other, whatever `--batch` says."""
    program = capture(torch.export.export(nn.Linear(6, 3).eval(), (torch.randn(1, 6),)))
    save_model(lower(program), folder / "fixed.onnx")
    options = ["--rounds", 2, "--batch", 8, "--json"]
    data = json.loads(invoke("bench", folder / "fixed.onnx", *options).stdout)
    assert data["batch"] == 1
    data = json.loads(invoke("bench", folder / "a.onnx", *options).stdout)
    assert data["batch"] == 8


def test_bench(folder: Path) -> None:
    result = invoke("bench", folder / "a.onnx", folder / "b.onnx", "--rounds", 2, "--batch", 4)
    assert result.exit_code == 0
    assert "baseline" in result.stdout
    assert "timing 2 files" in result.stderr
    data = json.loads(invoke("bench", folder / "a.onnx", folder / "a.onnx", "--rounds", 2, "--json").stdout)
    assert len(data["models"]) == 2
    assert data["models"][0]["verdict"] == "baseline"
    assert data["models"][0]["ratio"]["value"] == 1


@pytest.mark.parametrize(
    "args",
    [
        ["optimize"],
        ["optimize", "m:f"],
        ["optimize", "nonsense", "-o", "out"],
        ["optimize", "m:f", "-o", "out", "--prune", "half"],
        ["optimize", "m:f", "-o", "out", "--threads", "0"],
        ["bench"],
        ["bench", "a.onnx", "--rounds", "0"],
        ["diff", "a.onnx"],
        ["inspect", "a.onnx", "--why", "x"],
        ["wizard"],
        ["inspect", "--wizard"],
    ],
)
def test_wrong_usage_is_two(args: list[str]) -> None:
    assert invoke(*args).exit_code == 2


def test_typed_errors_are_one_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "cut.onnx"
    truncated.write_bytes((folder / "a.onnx").read_bytes()[:40])
    (tmp_path / "text.pt2").write_text("not an archive")
    (tmp_path / "text.fxc").write_text("not an archive")
    (tmp_path / "file").write_text("")
    for args in (
        ["inspect", tmp_path / "absent.fxc"],
        ["inspect", truncated],
        ["inspect", tmp_path / "text.pt2"],
        ["inspect", tmp_path / "text.fxc"],
        ["inspect", tmp_path / "file"],
        ["diff", truncated, folder / "a.onnx"],
        ["bench", truncated, folder / "a.onnx"],
        ["bench", folder / "a.onnx", "--size", "wizard=3"],
        ["inspect", folder / "net.fxc", "--why", "nothing[0]", "0.weight[0]"],
        ["optimize", "nowhere_at_all:f", "-o", tmp_path / "out"],
        ["optimize", folder / "net.fxc", "-o", tmp_path / "file"],
        ["optimize", folder / "net.fxc", "-o", tmp_path / "out", "--prune", "1.5"],
        ["optimize", folder / "net.fxc", "-o", tmp_path / "out", "--quantize", "int8"],
    ):
        result = invoke(*args)
        assert result.exit_code == 1, args
        assert result.stderr.startswith("error: ") or "\nerror: " in result.stderr, args
        assert "Traceback" not in result.output, args
        assert result.stdout == "", args
        assert not (tmp_path / "out").exists(), args
        told = json.loads(invoke(*args, "--json").stdout)["error"]
        assert told["message"], args
        assert told["kind"].endswith(("Error", "File", "Supported")), args


def test_dynamic_dimensions_reach_the_onnx_file(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    dynamic = ["--dynamic", "input_ids:1=sequence", "--dynamic", "attention_mask:1=sequence"]
    result = invoke("optimize", "cli_net:embedder", "-o", tmp_path / "out", *dynamic)
    assert result.exit_code == 0, result.output
    session = open_session(str(tmp_path / "out" / "model.onnx"))
    assert {value.name: value.shape for value in session.get_inputs()} == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
    }
    wrong = invoke("optimize", "cli_net:embedder", "-o", tmp_path / "out", "--dynamic", "ids:1=sequence")
    assert wrong.exit_code == 1
    assert "the inputs are input_ids, attention_mask" in wrong.stderr


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "model.onnx").mkdir(parents=True)
    for out in (Path("/proc/nope/x"), tmp_path / "out"):
        result = invoke("optimize", "nowhere_at_all:f", "-o", out)
        assert result.exit_code == 1
        assert str(out) in result.stderr
        assert "nowhere_at_all" not in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_what_trust_is_called_here_and_that_torch_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "junk.pt2").write_bytes(b"junk")
    junk = [sys.executable, "-m", "fxcompress.cli", "inspect", str(tmp_path / "junk.pt2"), "--trust"]
    done = subprocess.run(
        junk, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2", "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/aotinductor/model/code.so", b"code")
    told = invoke("inspect", tmp_path / "net.pt2")
    assert told.exit_code == 1
    assert "with --trust" in told.stderr
    assert "trust=True" not in told.stderr


def test_optimize_in_a_real_process(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [
        "--prune",
        "0.5",
        "--quantize",
        "int8",
        "--calibration",
        "images.npz",
        "--evaluate",
        "cli_net:score",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fxcompress.cli",
            "optimize",
            "cli_net:build",
            "-o",
            str(out),
            *options,
            "--json",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert report["before"]["metric"] == 3
    assert {path.name for path in out.iterdir()} == {"model.onnx", "program.fxc", "plan.json", "report.json"}
    assert " s\n" in done.stderr
    shown = invoke("diff", folder / "net.fxc", out / "program.fxc")
    assert shown.exit_code == 0
    assert (
        "INT8" in invoke("inspect", out / "model.onnx").stdout
        or "8-bit" in invoke("inspect", out / "model.onnx").stdout
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "vit.fxc"
    save(captured("vit_packed"), path)
    return path


def test_inspect_speaks_of_what_pruning_works_on_in_the_users_names(packed: Path) -> None:
    """The packed projection is split before pruning: its parts are groups of the user's one tensor."""
    qkv = "blocks.0.attention.qkv.weight"
    data = json.loads(invoke("inspect", packed, "--json").stdout)
    sizes = {group["name"]: group["size"] for group in data["groups"]}
    assert (sizes[f"{qkv}[0][0:64]:1"], sizes[f"{qkv}[0][128:192]:1"]) == (16, 16)
    told = str(data["groups"]) + str(data["frozen"])
    assert f"{qkv}_" not in told
    assert data["prunability"]["params"]["total"] == data["cost"]["params"]
    path = invoke("inspect", packed, "--why", f"{qkv}[0][128:192]", "blocks.0.attention.proj.weight[1]")
    assert path.stdout.splitlines()[0] == f"{qkv}[0][128:192]"


def test_names_that_inspect_shows_are_those_of_plans_and_options(packed: Path) -> None:
    """What `inspect` lists can be protected, given a share, and is what a plan prints."""
    name = "blocks.0.attention.qkv.weight[0][128:192]:1"
    analysis = analyse(loosened(captured("vit_packed")))
    plan = plan_pruning(analysis, Prune(ratios={name: 0.5}, block=1), 1)
    assert {group: len(stay) for group, stay in plan.channels.items()} == {name: 8}
    assert f"{name}: 16 -> 8" in str(plan)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan_pruning(analysis, Prune(0.2, protect=(name,)), 1).protected[name] == "protected by name"

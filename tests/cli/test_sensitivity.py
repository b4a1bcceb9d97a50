"""`fxcompress inspect --sensitivity` and the report's table name the layers that int8 hurts."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

import fxcompress
from fxcompress.api.attribution import attribution
from fxcompress.cli.main import main
from fxcompress.errors import NotSupported
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.report import tables
from fxcompress.report.report import LayerNoise, Report, Side


@pytest.fixture(scope="module")
def program() -> Program:
    """Three convolutions; the second is spoilt by one weight per channel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.01
        model[2].weight[:, 0, 1, 1] = 30.0
    return capture(model, torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def folder(program: Program, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("user")
    program.save(made / "net.fxc")
    np.savez(made / "images.npz", np.random.default_rng(0).standard_normal((6, 3, 8, 8), np.float32))
    return made


def invoke(*args: object):
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def test_the_worst_layer_comes_first(folder: Path):
    arguments = ("inspect", folder / "net.fxc", "--sensitivity", "--calibration", folder / "images.npz")
    shown = invoke(*arguments, "--target", "portable")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("Where int8 hurts")
    shares = [float(share) for share in re.findall(r"([\d.]+) % .* dB", shown.stdout)]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert "all together: outputs move by" in shown.stdout
    data = json.loads(invoke(*arguments, "--json", "--samples", 4, "--limit", 1).stdout)
    assert data["samples"] == 4
    assert len(data["layers"]) == 3
    assert [layer["alone"] is None for layer in data["layers"]] == [False, True, True]


@pytest.mark.parametrize(
    "arguments", [("--sensitivity",), ("--calibration", "images.npz")], ids=["no data", "no question"]
)
def test_the_options_go_together(folder: Path, arguments: tuple[str, ...]):
    result = invoke("inspect", folder / "net.fxc", *arguments)
    assert result.exit_code == 2
    assert "go together" in result.output


def test_an_onnx_file_is_no_program(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(b"")
    result = invoke("inspect", tmp_path / "a.onnx", "--sensitivity", "--calibration", "x.npz")
    assert result.exit_code == 2
    assert "needs a program" in result.output


def test_what_cannot_be_quantized_has_nothing_to_attribute():
    model = capture(nn.Sequential(nn.Softmax(1)).eval(), torch.randn(2, 4))
    with pytest.raises(NotSupported, match="nothing of this program can be quantized"):
        attribution(model, [torch.randn(2, 4)])


def test_the_report_of_a_quantized_model_names_the_worst(program: Program, capsys: pytest.CaptureFixture):
    images = [torch.randn(4, 3, 8, 8)]
    result = fxcompress.optimize(
        program,
        quantize=fxcompress.Quantize(equalize=False, smooth=False, correct_bias=False),
        calibration=images,
        target="portable",
    )
    report = result.report
    assert report.sensitivity[0].module == "2"
    assert report.sensitivity[0].alone == max(layer.alone or 0.0 for layer in report.sensitivity)
    assert Report.from_dict(report.to_dict()).sensitivity == report.sensitivity
    assert capsys.readouterr().out == ""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.overview(report))
    assert "Where int8 hurts" in console.export_text()


def test_the_table_stays_short_and_says_what_was_not_measured():
    rows = tuple(LayerNoise(f"conv{i}", "", 20.0, 30.0, 0.1 if i == 0 else None) for i in range(12))
    report = Report(Side(), Side(), sensitivity=rows)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.sensitivity(report.sensitivity))
    text = console.export_text()
    assert "10.00 %" in text
    assert "and 4 more" in text

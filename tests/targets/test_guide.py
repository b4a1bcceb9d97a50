"""The code of docs/targets.md runs as written, and its tables name what exists."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import fxcompress
from fxcompress.targets.catalog import TARGETS
from fxcompress.targets.target import Kernel, Target

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")


def test_the_page_runs_as_written(capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/targets.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "per tensor" in shown
    assert "latency was measured in ONNX Runtime, not on my-npu" in shown
    described = blocks[0].split("npu = ")[1]
    assert len(described.strip().splitlines()) <= 20


def test_the_tables_name_every_target_and_field():
    rows = re.findall(r"^\| (.*?) \|", GUIDE, flags=re.MULTILINE)
    named = set(re.findall(r"`([\w.]+)`", " ".join(rows)))
    assert set(TARGETS) <= named
    wanted = {field.name for field in fields(Target)} - {"name", "batched_linear", "float_reasons"}
    wanted |= {f"Kernel.{field.name}" for field in fields(Kernel)} - {"Kernel.name", "Kernel.quantized_name"}
    assert wanted <= named
    assert fxcompress.targets.resolve("portable").name == "portable"

"""The README's example runs as written, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fxcompress.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "'macs': 0." in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out" / "small").iterdir()}
    assert written == {"model.onnx", "program.fxc", "plan.json", "report.json"}


def test_the_commands_and_goals_exist() -> None:
    shell = "\n".join(blocks("console"))
    commands = set(re.findall(r"fxcompress (\w+) ", shell))
    assert commands == set(main.commands)
    goals = set(re.findall(r"make ([\w-]+)", README))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= goals
    assert all(re.search(rf"^{goal}:", makefile, flags=re.MULTILINE) for goal in goals)

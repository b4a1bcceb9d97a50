"""What is built holds the passes, and a copy that lost the link to them refuses to build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('dist'))"
HEADER = ("pyproject.toml", "setup.py", "README.md")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that a build reads, the link kept as a link."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("fxcompress", "passes"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    for name in HEADER:
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "dist").mkdir()
    return tmp_path


def build(folder: Path, kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, kind]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def expected() -> set[str]:
    return {f"fxcompress/passes/{path.name}" for path in (ROOT / "passes").glob("*.py")}


def test_wheel_and_sdist_hold_the_passes(copy: Path) -> None:
    assert build(copy, "build_wheel").returncode == 0
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert expected() <= names
    assert "fxcompress/py.typed" in names
    assert not any(name.startswith(("passes/", "tests/")) for name in names)
    assert build(copy, "build_sdist").returncode == 0
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        members = {member.name.partition("/")[2]: member for member in packed.getmembers()}
    assert expected() <= set(members)
    assert members["fxcompress/passes"].isdir()


def test_a_copy_that_lost_the_link_refuses_to_build(copy: Path) -> None:
    (copy / "fxcompress" / "passes").unlink()
    (copy / "fxcompress" / "passes").write_text("../passes")
    failed = build(copy, "build_wheel")
    assert failed.returncode != 0
    assert "must be a symbolic link to ../passes" in failed.stderr
    assert "git clone" in failed.stderr
    assert list((copy / "dist").iterdir()) == []


def test_constraints_pin_every_dependency_without_hosts_or_builds() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [need for extra in project["optional-dependencies"].values() for need in extra]
    needed = {re.split(r"[>=]=", need)[0].lower() for need in project["dependencies"] + extras}
    assert needed <= pinned
    assert all("==" in pin and not {"+", "/", "@"} & set(pin) for pin in pins)

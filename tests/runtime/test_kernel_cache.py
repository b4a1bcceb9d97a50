"""Kernel times on disk: shared by writers, and a damaged file costs nothing but its times."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fxcompress.runtime import kernel_cache
from fxcompress.runtime.kernel_cache import ENVIRONMENT, KernelCache, cache_folder

MACHINE = "cpu | runtime 1 | 1 threads"


def test_times_are_read_back_by_machine(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "new")
    assert cache.read(MACHINE) == {}
    cache.write(MACHINE, {"a": 1.5, "b": 2.5})
    cache.write("another runtime", {"a": 9.0})
    cache.write(MACHINE, {"b": 3.5})
    assert KernelCache(tmp_path / "new").read(MACHINE) == {"a": 1.5, "b": 3.5}
    assert cache.notes == []


WRITER = """
import runpy, sys
from pathlib import Path
module, folder, writer = sys.argv[1:]
cache = runpy.run_path(module)["KernelCache"](Path(folder))
for number in range(20):
    cache.write("machine", {f"{writer}-{number}": 1.0 + int(writer), "shared": 1.0 + number})
assert cache.notes == [], cache.notes
"""


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Processes that need nothing but the standard library: all write at once, and to a file that is new."""
    command = [sys.executable, "-c", WRITER, kernel_cache.__file__, str(tmp_path / "new")]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0, 0]
    found = KernelCache(tmp_path / "new").read("machine")
    assert len(found) == 81
    assert found["2-19"] == 3.0


@pytest.mark.parametrize(
    "content", [b"this is no database at all, not even nearly" * 50, b"SQLite format 3\0" * 200]
)
def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path: Path, content: bytes) -> None:
    cache = KernelCache(tmp_path)
    cache.path.write_bytes(content)
    assert cache.read(MACHINE) == {}
    assert "set aside" in cache.notes[0]
    cache.write(MACHINE, {"a": 1.0})
    assert cache.read(MACHINE) == {"a": 1.0}
    assert [path.read_bytes() for path in tmp_path.glob("*.damaged-*")] == [content]


def test_damage_in_the_middle_is_found_while_writing_too(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.write(MACHINE, {str(number): 1.0 for number in range(500)})
    content = bytearray(cache.path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    cache.path.write_bytes(bytes(content))
    cache.write(MACHINE, {"a": 1.0})
    assert cache.notes
    assert cache.read(MACHINE) == {"a": 1.0}


def test_a_file_of_another_format_is_set_aside(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    connection = sqlite3.connect(cache.path)
    connection.execute("CREATE TABLE times (machine TEXT, kernel TEXT, seconds REAL)")
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    assert cache.read(MACHINE) == {}
    assert "format 99" in cache.notes[0]
    cache.write(MACHINE, {"a": 1.0})
    assert cache.read(MACHINE) == {"a": 1.0}


@pytest.mark.parametrize("table", ["other (a)", "times (machine)", "times (machine, kernel, seconds, more)"])
@pytest.mark.parametrize("written", [True, False])
def test_a_file_with_other_tables_is_set_aside(tmp_path: Path, table: str, written: bool) -> None:
    """It claims to be of this format: reading and writing fail, and would forever."""
    cache = KernelCache(tmp_path)
    connection = sqlite3.connect(cache.path)
    connection.execute(f"CREATE TABLE {table}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    if not written:
        assert cache.read(MACHINE) == {}
    cache.write(MACHINE, {"a": 1.0})
    assert cache.read(MACHINE) == {"a": 1.0}
    assert cache.notes


def test_times_that_cannot_be_are_not_read(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.write(MACHINE, {"good": 1.0, "negative": -1.0, "infinite": float("inf"), "zero": 0.0})
    assert cache.read(MACHINE) == {"good": 1.0}


def test_a_folder_that_cannot_be_made_is_noted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = KernelCache(tmp_path / "file" / "folder")
    cache.write(MACHINE, {"a": 1.0})
    assert cache.read(MACHINE) == {}
    assert "cannot be used" in cache.notes[0]


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv(ENVIRONMENT)
    assert cache_folder().name in {"fxcompress", "cache"}


def test_a_folder_that_may_not_be_looked_into_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refused)
    cache = KernelCache(tmp_path)
    assert cache.read("here") == {}
    assert cache.notes


def test_a_user_without_a_folder_has_the_one_of_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (ENVIRONMENT, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert tempfile.gettempdir() in str(cache_folder())

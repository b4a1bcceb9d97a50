"""Kernel times on disk: one sqlite file per user, shared by processes, never a reason to fail.

The file lies in the user's cache folder (`FXCOMPRESS_CACHE` names another one). sqlite's own locks serialise
writers. A file that is damaged, or that another version of this format wrote, is renamed and a new one begun;
where nothing can be written at all, times live for the length of the process. Either is noted.
"""

from __future__ import annotations

import math
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FORMAT = 1
"""Version of the table's meaning; raised when a time of the same key would mean something else."""

ENVIRONMENT = "FXCOMPRESS_CACHE"
_FILE = "kernel_times.sqlite"
_PATIENCE = 30.0
"""Seconds to wait for another writer."""
_NAMES = 1000


def cache_folder() -> Path:
    """Where this user's caches live: `FXCOMPRESS_CACHE`, else the platform's place for caches."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home()) / "fxcompress" / "cache"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "fxcompress"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "fxcompress"


def _home() -> Path:
    """The user's folder; that of temporary files for a user who has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


@dataclass
class KernelCache:
    """Milliseconds by machine and kernel; `notes` says what went wrong, if anything did."""

    folder: Path = field(default_factory=cache_folder)
    notes: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / _FILE

    def read(self, machine: str) -> dict[str, float]:
        """Every known time of a machine; empty where the file cannot be read."""
        try:
            if not self.path.exists():
                return {}
            with self._opened() as connection:
                rows = connection.execute(
                    "SELECT kernel, ms FROM times WHERE machine = ?", (machine,)
                ).fetchall()
        except sqlite3.OperationalError as error:
            return self._set_aside(str(error)) if _is_damage(error) else self._without(error)
        except sqlite3.DatabaseError as error:
            return self._set_aside(str(error))
        except OSError as error:
            return self._without(error)
        return {kernel: ms for kernel, ms in rows if _sound(kernel, ms)}

    def write(self, machine: str, times: Mapping[str, float]) -> None:
        """Add times, in one transaction."""
        if not times:
            return
        rows = [(machine, kernel, ms) for kernel, ms in times.items()]
        for _ in range(2):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._opened() as connection, connection:
                    connection.executemany("INSERT OR REPLACE INTO times VALUES (?, ?, ?)", rows)
                return
            except sqlite3.OperationalError as error:
                if not _is_damage(error):
                    self._without(error)
                    return
                self._set_aside(str(error))
            except sqlite3.DatabaseError as error:
                self._set_aside(str(error))
            except OSError as error:
                self._without(error)
                return

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection to a file of this format; raises sqlite3.DatabaseError for any other file."""
        with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # what a power cut damages is measured again
            # Immediate: of two processes that find no table, one makes it and the other waits.
            connection.execute("BEGIN IMMEDIATE")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != FORMAT and (version or tables):
                raise sqlite3.DatabaseError(f"format {version}, this version writes {FORMAT}")
            if version != FORMAT:
                connection.execute(
                    "CREATE TABLE times (machine TEXT, kernel TEXT, ms REAL, PRIMARY KEY (machine, kernel))"
                )
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.commit()
            yield connection

    def _set_aside(self, why: str) -> dict[str, float]:
        """Rename the file so that a new one can begin; kept for whoever wants to look."""
        place = next(
            (
                other
                for number in range(_NAMES)
                if not (other := self.path.with_name(f"{_FILE}.damaged-{number}")).exists()
            ),
            self.path.with_name(f"{_FILE}.damaged"),
        )
        try:
            os.replace(self.path, place)
            self.path.with_name(f"{_FILE}-journal").unlink(missing_ok=True)
        except OSError as error:
            return self._without(error)
        self.notes.append(f"the cache of kernel times was set aside as {place.name}: {why}")
        return {}

    def _without(self, error: Exception) -> dict[str, float]:
        self.notes.append(f"the cache of kernel times cannot be used: {error}")
        return {}


def _is_damage(error: sqlite3.OperationalError) -> bool:
    """Whether the file is at fault, and not the moment: a table that is missing or has other columns."""
    return "no such" in str(error) or "values were supplied" in str(error)


def _sound(kernel: object, ms: object) -> bool:
    return isinstance(kernel, str) and isinstance(ms, float) and math.isfinite(ms) and ms > 0

"""A worker process that judges one model after the other, replaced when it hangs or dies."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.coverage_subjects import subjects
from benchmarks.coverage_tools import TOOLS, Row
from fxcompress.errors import CompressError


class Worker:
    """`judge` answers within the time limit; `close` ends the process."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Any = None

    def judge(self, tool: str, name: str) -> Row:
        """The row of one model in one tool; what takes too long or kills the process has not run."""
        if self._process is None:
            self._start()
        self._pipe.send((tool, name))
        try:
            if self._pipe.poll(self.limit):
                row: Row = self._pipe.recv()
                return row
            note = f"not finished after {self.limit:.0f} s"
        except EOFError:
            note = "the process died"
        self._kill()
        return Row(name, tool, seconds=self.limit, notes=[note])

    def close(self) -> None:
        """Let the process end."""
        if self._process is not None:
            self._pipe.send(None)
            self._process.join(self.limit)
            self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process = None

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it has imported everything: its time starts now


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere  # what libraries print is no part of the table
        known = subjects()
        pipe.send("ready")
        while (order := pipe.recv()) is not None:
            tool, name = order
            row = Row(name, tool)
            torch.manual_seed(0)
            try:
                TOOLS[tool](known[name], row)
            except CompressError as error:
                row.notes.append(f"{type(error).__name__}: {error.message}")
            except Exception as error:  # noqa: BLE001 - a crash of a tool is a finding, not our end
                row.notes.append(f"{type(error).__name__}: {str(error)[:200]}")
            pipe.send(row)

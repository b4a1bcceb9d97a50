"""Where the command line writes: results to stdout, progress and errors to stderr, JSON alone on stdout."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn

from fxcompress.errors import CompressError


def show(view: RenderableType) -> None:
    """Print something for people on stdout; plain text where stdout is no terminal."""
    Console(file=sys.stdout, soft_wrap=False).print(view)


def emit(data: Any) -> None:
    """Print JSON for machines on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def error_dict(error: CompressError) -> dict[str, Any]:
    """A typed error for machines."""
    return {
        "error": {
            "kind": type(error).__name__,
            "message": error.message,
            "node": error.node,
            "source": error.source,
            "context": list(error.context),
            "hint": error.hint,
        }
    }


class Steps:
    """Progress of long work on stderr: each step with its time, the current one ticking on a terminal.

    Call it with the name of a step as the step begins; leaving the context ends the last one.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, stderr=True)
        self._live = Progress(
            SpinnerColumn(finished_text="·"),
            TextColumn("{task.description}"),
            TextColumn("{task.elapsed:.1f} s"),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._start = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __call__(self, name: str) -> None:
        """End the current step and begin the one called `name`."""
        self._finish()
        self._name, self._start = name, time.perf_counter()
        if self._console.is_terminal:
            self._task = self._live.add_task(name, total=1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish()
        if self._console.is_terminal:
            self._live.stop()

    def _finish(self) -> None:
        if not self._name:
            return
        if self._task is not None:
            self._live.update(self._task, completed=1)
            self._live.stop_task(self._task)
        else:
            seconds = time.perf_counter() - self._start
            click.echo(f"{self._name}  {seconds:.1f} s", err=True)
        self._name, self._task = "", None

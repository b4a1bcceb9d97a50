"""Run stages in the order they are written: each checked, timed and kept in the program's history.

A `Stage` is what a pass is, a name and ``run(program) -> Outcome``; later layers (fine-tuning, for one) bring
their own. A `Journal` keeps the log of one whole call, of stages and of the steps between them that edit
nothing, such as calibration or a proof. Nothing here prints: whoever wants progress passes a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from fxcompress.errors import CompressError
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.contract import Decline, Outcome

Progress = Callable[[str], None]


class Stage(Protocol):
    """One step of a pipeline: takes a program, returns the next one and what happened."""

    @property
    def name(self) -> str:
        """The stage's name in logs."""

    def run(self, program: Program) -> Outcome:
        """Return the outcome; the program given stays as it was."""


@dataclass(frozen=True)
class Entry:
    """One line of the log: a stage or step, its wall time, what it changed and what it declined."""

    name: str
    seconds: float
    changed: tuple[str, ...] = ()
    declined: tuple[Decline, ...] = ()


@dataclass
class Journal:
    """The log of one call; ``progress`` is told the name of every step as it begins."""

    progress: Progress | None = None
    entries: list[Entry] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block that edits no program; a CompressError that leaves it says where it was."""
        start = self._begin(name)
        try:
            yield
        except CompressError as error:
            error.note(f"while running {name}")
            raise
        self.entries.append(Entry(name, time.perf_counter() - start))

    def apply(self, stage: Stage, program: Program) -> Program:
        """The program of a stage's `outcome`."""
        return self.outcome(stage, program).program

    def outcome(self, stage: Stage, program: Program) -> Outcome:
        """Run a stage, check the program it returns, and note what it did in the log and the program's
        history.

        Raises:
            IllFormed: the stage returned a program that breaks the canonical form.
        """
        start = self._begin(stage.name)
        try:
            outcome = stage.run(program)
            if outcome.program is not program:
                well_formed(outcome.program)
        except CompressError as error:
            error.note(f"while running {stage.name}")
            raise
        if outcome.program is not program:
            outcome.program.history.append(f"{stage.name}: {_count(len(outcome.changed), 'change')}")
        seconds = time.perf_counter() - start
        self.entries.append(Entry(stage.name, seconds, outcome.changed, outcome.declined))
        return outcome

    def apply_all(self, stages: Iterable[Stage], program: Program) -> Program:
        """Run stages one after the other, in the order given."""
        for stage in stages:
            program = self.apply(stage, program)
        return program

    def _begin(self, name: str) -> float:
        if self.progress is not None:
            self.progress(name)
        return time.perf_counter()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

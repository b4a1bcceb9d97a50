"""Which of several models is faster, said honestly on a noisy machine.

All models are timed in one process and one alternated run: a *round* times every model once, in an order that
rotates from round to round, so that drift of the machine falls on all of them. One model's share of a round
repeats the call until it lasts some milliseconds, long enough for the clock and the scheduler. What is
compared is the median over rounds, with a bootstrap interval that resamples whole rounds. "Slower" means that
the interval lies above 1.02.

One thread is the default: the same file timed against itself with two threads fell outside 2 % in 6 of 16
trials on the machine the design was made on.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fxcompress.errors import InputError
from fxcompress.numerics.statistics import Ratio, bootstrap_ratio
from fxcompress.runtime.session import Feeds, Model, contiguous, open_session, run

Clock = Callable[[], float]
"""Seconds from some moment on."""


class Runner(Protocol):
    """An open model: an ONNX Runtime session, or what is called like one."""

    def run(self, output_names: None, feeds: dict[str, NDArray[Any]]) -> Any:
        """Run once on named arrays."""


class Opener(Protocol):
    """Opens a model of labelled ones, with that many threads."""

    def __call__(self, model: Any, *, threads: int) -> Runner:
        """Raise SessionError for what the runtime does not accept."""


@dataclass(frozen=True)
class Engine:
    """The runtime that models are timed in: its name, for the record, and how it opens one."""

    name: str = "onnxruntime"
    opener: Opener = open_session


ONNXRUNTIME = Engine()
SLOWER = 1.02
_ROUND_SECONDS = 0.005
_WARM_CALLS = 3
_WARM_SECONDS = 0.05


@dataclass(frozen=True)
class Comparison:
    """Seconds per call of each model in each round; element i of every tuple is of round i."""

    seconds: Mapping[str, tuple[float, ...]]
    repetitions: Mapping[str, int]
    threads: int
    runtime: str = "onnxruntime"

    @property
    def rounds(self) -> int:
        """How many alternated rounds were measured."""
        return len(next(iter(self.seconds.values())))

    @property
    def median_ms(self) -> dict[str, float]:
        """Median milliseconds per call, by label."""
        return {label: 1e3 * float(np.median(values)) for label, values in self.seconds.items()}

    def ratio(self, a: str, b: str) -> Ratio:
        """Time of `a` over time of `b`: above one, `a` is slower; with its 95 % bootstrap interval."""
        return bootstrap_ratio(self.seconds[a], self.seconds[b])

    def slower(self, a: str, b: str) -> bool:
        """Whether `a` is slower than `b` beyond doubt and beyond two percent."""
        return self.ratio(a, b).low > SLOWER

    def throughput(self, label: str, batch: int) -> float:
        """Samples per second of a model that was timed on feeds of `batch` samples."""
        return batch / float(np.median(self.seconds[label]))


def compare(  # noqa: PLR0913 - the keywords are the settings of one measurement
    models: Mapping[str, Model],
    feeds: Feeds,
    *,
    threads: int = 1,
    rounds: int = 30,
    seconds: float | None = None,
    clock: Clock = time.perf_counter,
    engine: Engine = ONNXRUNTIME,
    sessions: int = 1,
) -> Comparison:
    """Time labelled models against each other on the same feeds.

    Args:
        models: label to ONNX bytes, path or ModelProto; a single one is simply timed.
        feeds: input name to array, valid for every model.
        threads: intra-operator threads of each session.
        rounds: how many alternated rounds; 30 unless the caller states fewer.
        seconds: soft bound on the whole measurement. It lowers the repetitions inside a round, down to one
            call, never the number of rounds.
        clock: what time is read from. The processor time of this thread (`time.thread_time`) leaves out what
            other processes took, and counts everything only where the session has one thread.
        engine: the runtime.
        sessions: how many times each model is opened anew; the rounds are spread over them. Where a session
            comes to lie in memory, and the state of the machine in that second, moved the ratio of a pruned
            MobileNetV2 to its original between 0.41 and 0.46; rounds of one session do not show that.

    Raises:
        SessionError: a model does not load or does not take the feeds.
        InputError: no model, or no round.
    """
    if not models or not 1 <= sessions <= rounds:
        raise InputError(
            f"at least one model, and a round for each session, expected: got {len(models)} models, {rounds} "
            f"rounds and {sessions} sessions"
        )
    measured: dict[str, list[float]] = {label: [] for label in models}
    repetitions: dict[str, int] = {}
    for part in range(sessions):
        opened = {label: engine.opener(model, threads=threads) for label, model in models.items()}
        single = {label: _warm(session, feeds) for label, session in opened.items()}
        repetitions = repetitions or _repetitions(single, rounds, seconds)
        count = rounds // sessions + (part < rounds % sessions)
        _rounds(opened, feeds, count, repetitions, clock, measured)
    seen = {label: tuple(values) for label, values in measured.items()}
    return Comparison(seen, repetitions, threads, engine.name)


def _rounds(
    opened: Mapping[str, Runner],
    feeds: Feeds,
    count: int,
    repetitions: Mapping[str, int],
    clock: Clock,
    measured: Mapping[str, list[float]],
) -> None:
    """Time every session once in each of so many rounds, in an order that rotates."""
    order = list(opened)
    with _no_collection():
        for _ in range(count):
            for label in order:
                measured[label].append(_time(opened[label], feeds, repetitions[label], clock))
            order = order[1:] + order[:1]


def _warm(session: Runner, feeds: Feeds) -> float:
    """Run until caches and arenas have settled, checking the feeds; returns the fastest call in seconds."""
    if isinstance(session, ort.InferenceSession):
        run(session, feeds)
    fastest, spent, calls = math.inf, 0.0, 0
    while calls < _WARM_CALLS or (spent < _WARM_SECONDS and calls < 1000):
        took = _time(session, feeds, 1)
        fastest, spent, calls = min(fastest, took), spent + took, calls + 1
    return fastest


def _repetitions(single: Mapping[str, float], rounds: int, seconds: float | None) -> dict[str, int]:
    """Calls per round and label: enough to last `_ROUND_SECONDS`, few enough to stay within `seconds`."""
    wanted = {label: max(1, math.ceil(_ROUND_SECONDS / took)) for label, took in single.items()}
    if seconds is None:
        return wanted
    planned = rounds * sum(single[label] * count for label, count in wanted.items())
    scale = min(1.0, seconds / planned)
    return {label: max(1, int(count * scale)) for label, count in wanted.items()}


def _time(session: Runner, feeds: Feeds, calls: int, clock: Clock = time.perf_counter) -> float:
    """Seconds per call over `calls` calls in a row."""
    arrays = contiguous(feeds)
    start = clock()
    for _ in range(calls):
        session.run(None, arrays)
    return (clock() - start) / calls


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the measurement."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

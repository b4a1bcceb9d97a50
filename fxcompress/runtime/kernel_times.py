"""How long one kernel takes on this machine, measured once and remembered.

A kernel is timed by the runtime's own profiler on a model of that one operator, so that neither the call from
Python nor the reordering into blocked layout counts: inside a network both are shared by many operators. The
fastest of several runs is taken, since other processes can only ever add time.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import onnxruntime as ort

from fxcompress.errors import first_line
from fxcompress.runtime.kernel_cache import KernelCache
from fxcompress.runtime.kernel_models import REORDERS, Kernel, model_of
from fxcompress.runtime.session import RUNTIME_ERRORS, Feeds, SessionError, session_options

Timer = Callable[[Kernel, int], float]
"""From a kernel and a number of threads to milliseconds."""

_RUNS, _MOST_RUNS = 6, 40
_SPENT = 0.003
"""Seconds that the runs of one kernel last at least, unless there are `_MOST_RUNS` of them."""
_WRITTEN_AT_ONCE = 64


def time_kernel(kernel: Kernel, threads: int = 1) -> float:
    """Milliseconds of one kernel, by the runtime's profiler.

    Raises:
        SessionError: the installed runtime does not run this kernel.
    """
    content, feeds = model_of(kernel)
    took = fastest_nodes(content, feeds, threads, f"the kernel {kernel.key}")
    return max(1e-4, sum(ms for _, operator, ms in took if _counts(kernel, operator)))


def _counts(kernel: Kernel, operator: str) -> bool:
    """Whether a node is part of the kernel, or a change of layout that its neighbours would share."""
    if kernel.operator in REORDERS:
        return operator == kernel.operator
    if operator in REORDERS or (operator == "QLinearConv" and kernel.operator != "Conv"):
        return False
    if operator == "GlobalAveragePool" and kernel.operator == "Conv":
        return False
    return operator != "Transpose" or kernel.operator in ("Transpose", "Attention")


def fastest_nodes(
    content: bytes, feeds: Feeds, threads: int = 1, what: str = "the model"
) -> list[tuple[str, str, float]]:
    """Every node that the runtime executes: its name, its operator and the ms of its fastest run.

    Raises:
        SessionError: the runtime does not run the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads=threads)
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        try:
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            start, runs = time.perf_counter(), 0
            while runs < _RUNS or (runs < _MOST_RUNS and time.perf_counter() - start < _SPENT):
                session.run(None, feeds)
                runs += 1
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except RUNTIME_ERRORS as error:
            raise SessionError(f"{what} does not run: {first_line(error)}") from error
    return _fastest(events)


def _fastest(events: list[dict[str, object]]) -> list[tuple[str, str, float]]:
    fastest: dict[tuple[str, str], float] = {}
    for event in events:
        name, details = str(event.get("name")), event.get("args")
        if not name.endswith("_kernel_time") or not isinstance(details, dict):
            continue
        place = (name.removesuffix("_kernel_time"), str(details.get("op_name")))
        # The profiler counts whole microseconds: what it calls 0 took a part of one.
        took = max(0.5, float(str(event["dur"])))
        fastest[place] = min(took, fastest.get(place, took))
    return [(name, operator, took / 1e3) for (name, operator), took in fastest.items()]


@cache
def cpu_model() -> str:
    """The processor's name, as the system states it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict[str, str]()
        for line in info.read_text(errors="replace").splitlines():
            name, _, text = line.partition(":")
            fields.setdefault(name.strip(), text.strip())
        stated = [fields.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")]
        if any(stated):
            return " ".join(stated)
    return f"{platform.machine()} {platform.processor()}"


@dataclass
class KernelTimes:
    """Kernel times of this machine: looked up, else measured, until the time for measuring is spent.

    Args:
        cache: what is remembered between processes.
        threads: threads of the runtime inside one operator.
        timer: what measures.
        seconds: measuring stops after this long; then what is not known stays unknown.
    """

    cache: KernelCache = field(default_factory=KernelCache)
    threads: int = 1
    timer: Timer = time_kernel
    seconds: float = 60.0
    measured: int = 0
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._known = self.cache.read(self.machine)
        self._fresh: dict[str, float] = {}

    @property
    def machine(self) -> str:
        """What times are only valid for: processor, runtime, threads."""
        return f"{cpu_model()} | onnxruntime {ort.__version__} | {self.threads} threads"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures should know."""
        notes = tuple(self.cache.notes)
        if self.spent >= self.seconds:
            notes += (f"measuring kernels stopped after {self.spent:.0f} s; other widths were interpolated",)
        return notes

    def ms(self, kernel: Kernel) -> float | None:
        """Milliseconds of a kernel; None once the time for measuring is spent and it is not known.

        Raises:
            SessionError: the installed runtime does not run this kernel.
        """
        key = kernel.key
        if key not in self._known:
            if self.spent >= self.seconds:
                return None
            start = time.perf_counter()
            self._known[key] = self._fresh[key] = self.timer(kernel, self.threads)
            self.spent += time.perf_counter() - start
            self.measured += 1
            if len(self._fresh) >= _WRITTEN_AT_ONCE:
                self.save()
        return self._known[key]

    def save(self) -> None:
        """Write what was measured since the last time."""
        self.cache.write(self.machine, self._fresh)
        self._fresh = {}


def profiled(content: bytes, feeds: Feeds, threads: int = 1) -> float:
    """Milliseconds of all kernels of a whole model, each at its fastest, layout changes included.

    Raises:
        SessionError: the runtime does not run the model.
    """
    return sum(took for _, _, took in fastest_nodes(content, feeds, threads))

"""The report: what the model was, what it became, and everything that was decided or declined on the way.

Frozen dataclasses with a lossless trip to and from JSON. Nothing here measures or decides; the pipeline
fills it in, `report.tables` and the command line show it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval; for a ratio, below 1 is faster."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One of the two models compared; what was not measured is None.

    Attributes:
        params: number of parameters of the program (after: integers count as one each).
        macs: multiply-accumulates per sample at the example's spatial size.
        bytes: size of the ONNX file.
        latency_ms: median of one call at the report's batch and threads.
        latency_low: lower end of the middle half of the rounds, in ms.
        latency_high: upper end of the same.
        throughput: samples per second at the report's batch.
        peak_memory: peak resident bytes of a fresh process that holds the session.
        metric: what the user's `evaluate` returned; higher is better.
    """

    params: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    throughput: float | None = None
    peak_memory: int | None = None
    metric: float | None = None


@dataclass(frozen=True)
class DeclinedSite:
    """A place that a pass looked at and left alone, with the reason and the user's line."""

    site: str
    reason: str
    source: str | None = None


@dataclass(frozen=True)
class PassEntry:
    """One line of the pass log: a stage, how long it took, what it changed and what it declined."""

    name: str
    seconds: float
    changed: tuple[str, ...] = ()
    declined: tuple[DeclinedSite, ...] = ()


@dataclass(frozen=True)
class FrozenEntry:
    """An axis that could not be pruned: where it is, its size, why, and the user's line.

    `params` and `macs` are what it keeps from being prunable, `members` every dimension of a parameter in
    which it occurs.
    """

    axis: str
    size: int
    reason: str
    source: str | None = None
    operator: str | None = None
    params: int | None = None
    macs: int | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reachable:
    """A cost of the original: the whole, what pruning can reach, what goes with every group at one index."""

    total: int
    prunable: int
    removable: int


@dataclass(frozen=True)
class Prunability:
    """What pruning can reach of the original's parameters and MACs; `Report.frozen` names the obstacles."""

    params: Reachable
    macs: Reachable


@dataclass(frozen=True)
class OutputError:
    """How far the outputs are from the original model's on the measured inputs, lossy stages included.

    `max` and `mean` are over the elements of all outputs. `relative` is that of the output it is largest for:
    the norm of the difference over the norm of that output. `output` is its name where there are several.
    """

    max: float
    mean: float
    relative: float | None = None
    output: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A model that was timed for real before the choice; the chosen one is what the user got.

    `error` is the norm of the difference to the original's output over its norm, for the output where that is
    largest.
    """

    name: str
    latency_ms: float | None = None
    bytes: int | None = None
    metric: float | None = None
    error: float | None = None
    chosen: bool = False
    reason: str = ""


@dataclass(frozen=True)
class FrontierPoint:
    """A point of the latency-accuracy frontier of the precision cut, as prices predict it.

    Attributes:
        operators: how many are in integers.
        latency_ms: of the operators that have a price: the order of the points, not a model's latency.
        error: relative, from the noise that each operator brings in; where `max_drop` was walked, from what
            each layer alone was seen to do to the outputs.
        candidate: the one that was made of this choice, None where none was.
    """

    operators: int
    latency_ms: float
    error: float
    candidate: str | None = None


@dataclass(frozen=True)
class Proof:
    """An oracle that ran: what it compared, the largest error it saw, the bound it had to stay under."""

    name: str
    error: float
    bound: float
    detail: str = ""


@dataclass(frozen=True)
class LatencyRound:
    """One round of a budget in milliseconds: what was predicted for a plan and what its model took, which is
    the median where it was measured more than once.
    """

    predicted_ms: float
    measured_ms: float
    chosen: bool = False
    measurements: int = 1


@dataclass(frozen=True)
class LatencyBudget:
    """A budget in milliseconds: asked, the original, the chosen plan, and the rounds that led to it.

    All are on the clock of the first measurement of the original; later ones count by their ratio to it.
    """

    asked_ms: float
    original_ms: float
    predicted_ms: float
    measured_ms: float
    rounds: tuple[LatencyRound, ...] = ()


@dataclass(frozen=True)
class Operators:
    """Integer operators: how many the plan meant, how many the runtime executes, which fell back."""

    intended: int
    executed: int
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerNoise:
    """What quantization does at a layer: in the whole, in itself, and to the outputs by it alone.

    `snr_db` is signal to noise in the quantized program, `own_db` the same given exact inputs; `alone` the
    relative error of the output that moves most with this layer alone in integers, None where it was not
    measured.
    """

    node: str
    module: str
    snr_db: float
    own_db: float
    alone: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Report:
    """The whole story of one `optimize` call.

    Attributes:
        before: the unmodified model's float ONNX.
        after: the result.
        latency_ratio: latency after over before, from one alternated run.
        frontier: the choices of precision that prices call best, from the fastest to the most accurate.
        sensitivity: the layers of the chosen quantized model, the ones that hurt most first.
        settings: the arguments that shaped the result (prune, quantize, target, threads, batch, opset, ...).
        seconds: wall time of the whole call.
    """

    before: Side
    after: Side
    output_error: OutputError | None = None
    latency_ratio: Interval | None = None
    passes: tuple[PassEntry, ...] = ()
    frozen: tuple[FrozenEntry, ...] = ()
    prunability: Prunability | None = None
    notes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    proofs: tuple[Proof, ...] = ()
    operators: Operators | None = None
    latency_budget: LatencyBudget | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    sensitivity: tuple[LayerNoise, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def ratio(self, name: str) -> float | None:
        """After over before for a numeric field of `Side`, or None where either was not measured."""
        before, after = getattr(self.before, name), getattr(self.after, name)
        if before is None or after is None or before == 0:
            return None
        return float(after) / float(before)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings; `from_dict` restores an equal report.

        Numbers that JSON has no word for (NaN, infinities) become None.
        """
        plain = _plain(dataclasses.asdict(self))
        plain["ratios"] = {
            name: self.ratio(name) for name in ("params", "macs", "bytes", "latency_ms", "peak_memory")
        }
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`; unknown keys of a newer version are ignored."""
        return cls(
            before=_build(Side, data["before"]),
            after=_build(Side, data["after"]),
            output_error=_optional(OutputError, data.get("output_error")),
            latency_ratio=_optional(Interval, data.get("latency_ratio")),
            passes=tuple(_pass_entry(entry) for entry in data.get("passes", ())),
            frozen=tuple(_build(FrozenEntry, entry) for entry in data.get("frozen", ())),
            prunability=_prunability(data.get("prunability")),
            notes=tuple(data.get("notes", ())),
            candidates=tuple(_build(Candidate, entry) for entry in data.get("candidates", ())),
            proofs=tuple(_build(Proof, entry) for entry in data.get("proofs", ())),
            operators=_optional(Operators, data.get("operators")),
            latency_budget=_latency_budget(data.get("latency_budget")),
            frontier=tuple(_build(FrontierPoint, entry) for entry in data.get("frontier", ())),
            sensitivity=tuple(_build(LayerNoise, entry) for entry in data.get("sensitivity", ())),
            settings=dict(data.get("settings", {})),
            seconds=data.get("seconds"),
        )


def _plain(value: Any) -> Any:
    """JSON's own types: tuples become lists, NaN and infinities None, other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _build(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from a mapping: known fields only, lists as tuples."""
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {key: item for key, item in data.items() if key in known}
    return kind(**{key: tuple(item) if isinstance(item, list) else item for key, item in given.items()})


def _optional(kind: type[T], data: Mapping[str, Any] | None) -> T | None:
    return None if data is None else _build(kind, data)


def _prunability(data: Mapping[str, Any] | None) -> Prunability | None:
    if data is None:
        return None
    return Prunability(_build(Reachable, data["params"]), _build(Reachable, data["macs"]))


def _latency_budget(data: Mapping[str, Any] | None) -> LatencyBudget | None:
    if data is None:
        return None
    rounds = tuple(_build(LatencyRound, entry) for entry in data.get("rounds", ()))
    return dataclasses.replace(_build(LatencyBudget, data), rounds=rounds)


def _pass_entry(data: Mapping[str, Any]) -> PassEntry:
    declined = tuple(_build(DeclinedSite, site) for site in data.get("declined", ()))
    return PassEntry(data["name"], data["seconds"], tuple(data.get("changed", ())), declined)

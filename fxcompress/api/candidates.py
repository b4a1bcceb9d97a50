"""Which of the models that were made is handed out, decided on what was measured.

The candidates are the float model, the variants that quantization made of it and, as the fallback, the
original. The rule is the whole policy:

- a candidate that loses more of the metric than `max_drop` is out; without a metric, one with an output that
  is further away, relative to its norm;
- `objective="latency"`: the fastest is in front; one within 2 % of it that has a smaller file takes its
  place;
- `objective="size"`: the smallest file is in front, unless it is `SIZE_SLOWDOWN` times slower than the
  original;
- where the target could not be timed, nothing is known to be slower: the variants are tried in the order they
  were made;
- `Quantize(precision="full")` asks for the first variant and gets it;
- a variant whose proof fails is out, and the reason is reported; the one that was asked for raises;
- nothing that is slower than the original beyond doubt is handed out otherwise: the original is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from fxcompress.errors import BudgetError
from fxcompress.graph.program import Program
from fxcompress.runtime.timing import SLOWER, Comparison

SIZE_SLOWDOWN = 1.25
"""How many times slower than the original `objective="size"` lets the smallest file be."""

SAME_SIZE = 1.01
"""Files whose sizes are within this share are told apart by their times."""

ORIGINAL, FLOAT, CARRIED = "original", "float", "int8, as it came"
"""`FLOAT` is the folded program; `CARRIED` is what it is called where the model came quantized."""

FOLDED = (FLOAT, CARRIED)
BARE = "float, without its quantizers"
"""What a model that came quantized would be in float; timed, and never handed out: its scales are kept."""

ROUNDING = 1e-6
"""What a folded model may lose of a metric, relative to it or to one, and still be said to lose nothing."""

Check = Callable[["Candidate"], str | None]
"""Why a candidate may not be handed out, None where nothing speaks against it."""


@dataclass(frozen=True)
class Candidate:
    """A lowered model and the program that it was lowered from; `size` is that of its file in bytes."""

    name: str
    program: Program
    model: onnx.ModelProto
    content: bytes

    @property
    def size(self) -> int:
        """Bytes of the ONNX file."""
        return len(self.content)


@dataclass(frozen=True)
class Rules:
    """What the choice depends on beside the measurements.

    `errors` are relative output errors by name, for `max_drop` without a metric; `untimed` is the target that
    the times say nothing about; `lossless` says that nothing was removed before anything was quantized;
    `moved` names the output that an error is of, where there are several.
    """

    objective: str
    forced: bool
    max_drop: float | None
    errors: Mapping[str, float] = field(default_factory=dict)
    untimed: str | None = None
    lossless: bool = True
    moved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The winner's name, and for every candidate why it won or lost and its metric where it was measured."""

    winner: str
    reasons: dict[str, str]
    metrics: dict[str, float]


def choose(
    candidates: Sequence[Candidate],
    times: Comparison,
    rules: Rules,
    metric: Callable[[Candidate], float] | None,
    check: Check | None = None,
) -> Choice:
    """Choose among candidates, the original first; `metric` and `check` (a proof) are called for as few of
    them as the rules need.

    Raises:
        BudgetError: `max_drop` is set, and every compressed candidate loses more than it allows.
    """
    original, *made = (item for item in candidates if item.name != BARE)
    reasons: dict[str, str] = {}
    metrics: dict[str, float] = {}
    lost: dict[str, float] = {}
    if metric is not None:
        metrics[ORIGINAL] = metric(original)
    for candidate, reason in _preference(original, made, times, rules):
        if metric is not None:
            metrics[candidate.name] = metric(candidate)
        drop = _drop(candidate, rules, metrics)
        if rules.max_drop is not None and drop > rules.max_drop:
            lost[candidate.name] = drop
            what = "the metric" if metric is not None else _judged(rules.moved.get(candidate.name))
            reasons[candidate.name] = f"loses {drop:.4g} of {what}; max_drop is {rules.max_drop:g}"
            continue
        fault = check(candidate) if check is not None else None
        if fault is not None:
            reasons[candidate.name] = fault
            continue
        reasons[candidate.name] = reason
        return Choice(candidate.name, _explained(candidate, candidates, times, rules, reasons), metrics)
    if rules.max_drop is not None and lost:
        raise _refusal(lost, metrics, rules.max_drop, rules.moved)
    unproven = ", or its proof failed" if reasons else ""
    reasons[ORIGINAL] = f"everything else is slower{unproven}: the model is handed out as it was"
    return Choice(ORIGINAL, _explained(original, candidates, times, rules, reasons), metrics)


def _judged(output: str | None) -> str:
    return "its outputs' norm" if output is None else f"the norm of its output {output!r}"


def _drop(candidate: Candidate, rules: Rules, metrics: Mapping[str, float]) -> float:
    """Return what a candidate loses: of the metric, else the relative error of the output that moves most.

    A folded model of which nothing was removed loses nothing, and of a metric nothing but rounding: its proof
    has bounded it by that.
    """
    lossless = candidate.name in FOLDED and rules.lossless
    if candidate.name in metrics:
        drop = metrics[ORIGINAL] - metrics[candidate.name]
        rounding = ROUNDING * max(1.0, abs(metrics[ORIGINAL]))
        return 0.0 if lossless and 0.0 < drop <= rounding else drop
    if lossless:
        return 0.0
    return rules.errors.get(candidate.name, 0.0)


def _preference(
    original: Candidate, made: Sequence[Candidate], times: Comparison, rules: Rules
) -> Iterator[tuple[Candidate, str]]:
    """Yield the candidates that may be handed out, best first, each with the reason if it is taken."""
    if rules.forced:
        wanted = next((item for item in made if item.name not in FOLDED), None)
        if wanted is not None:
            yield wanted, f'precision="full" asks for {wanted.name}'
            return
    if rules.untimed is not None:
        yield from _untimed(made, rules)
        return
    if rules.objective == "size":
        quick = [x for x in made if times.ratio(x.name, original.name).low <= SIZE_SLOWDOWN]
        yield from _by_size(quick, times)
        return
    rest = [item for item in made if not times.slower(item.name, original.name)]
    while rest:
        fastest = min(rest, key=lambda item: times.median_ms[item.name])
        ties = [item for item in rest if times.ratio(item.name, fastest.name).value <= SLOWER]
        best = min(ties, key=lambda item: item.size)
        yield best, "the fastest" if best is fastest else f"as fast as {fastest.name}, with a smaller file"
        rest.remove(best)


def _by_size(rest: list[Candidate], times: Comparison) -> Iterator[tuple[Candidate, str]]:
    """Yield the candidates, the smallest first; of those within 1 % of the smallest, the fastest."""
    rest = list(rest)
    while rest:
        least = min(item.size for item in rest)
        small = [item for item in rest if item.size <= SAME_SIZE * least]
        best = min(small, key=lambda item: times.median_ms[item.name])
        yield best, f"the smallest file that is not {SIZE_SLOWDOWN:g} times slower than the original"
        rest.remove(best)


def _untimed(made: Sequence[Candidate], rules: Rules) -> Iterator[tuple[Candidate, str]]:
    """Yield the candidates for a target that no time was measured on: what was asked for, in order."""
    order = [
        *(item for item in made if item.name not in FOLDED),
        *(item for item in made if item.name in FOLDED),
    ]
    if rules.objective == "size":
        order.sort(key=lambda item: item.size)
    for item in order:
        yield item, f"made for {rules.untimed}, which was not timed here"


def _explained(
    winner: Candidate,
    candidates: Sequence[Candidate],
    times: Comparison,
    rules: Rules,
    reasons: dict[str, str],
) -> dict[str, str]:
    """Return a reason for every candidate: the stated ones, else how it compares with the winner."""
    explained = {}
    for item in candidates:
        if item.name in reasons:
            explained[item.name] = reasons[item.name]
        elif item.name == ORIGINAL:
            explained[item.name] = "for comparison"
        elif item.name == BARE:
            ratio = times.ratio(item.name, winner.name)
            explained[item.name] = f"for comparison: {ratio.value:.2f} times the latency of {winner.name}"
        elif rules.objective == "size" and item.size >= winner.size:
            explained[item.name] = f"{item.size / winner.size:.2f} times the size of {winner.name}"
        else:
            ratio = times.ratio(item.name, winner.name)
            explained[item.name] = f"{ratio.value:.2f} times the latency of {winner.name}"
    return explained


def _refusal(
    lost: dict[str, float], metrics: dict[str, float], max_drop: float, moved: Mapping[str, str]
) -> BudgetError:
    if metrics:
        found = ", ".join(f"{name} {metrics[name]:.4g}" for name in lost)
        said = f"the metric is {metrics[ORIGINAL]:.4g} before and may lose {max_drop:g}; after: {found}"
    else:
        where = {name: f" ({output})" for name, output in moved.items()}
        found = ", ".join(f"{name} {drop:.4g}{where.get(name, '')}" for name, drop in lost.items())
        said = f"outputs may move by {max_drop:g} of their norm, and move by: {found}"
    return BudgetError(
        said,
        hint='prune less, leave layers in float (precision="auto" searches which, exclude= names them), pass '
        "more calibration data, or raise max_drop; nothing was returned",
    )

"""The report as tables: before and after, the pass log, frozen axes, candidates, proofs.

Every function returns something that rich can print and fits 80 columns; where it is printed, and whether
with colour, is the caller's affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxcompress.report import units
from fxcompress.report.report import (
    DeclinedSite,
    FrontierPoint,
    FrozenEntry,
    LayerNoise,
    Prunability,
    Report,
    Side,
)

MAX_ROWS = 20
WORST = 8


def overview(report: Report) -> RenderableType:
    """Everything a person reads after `optimize`, most important first."""
    parts: list[RenderableType] = [summary(report), passes(report)]
    if len(report.candidates) > 1:
        parts.append(candidates(report))
    if len(report.frontier) > 1:
        parts.append(frontier(report.frontier))
    if report.sensitivity:
        parts.append(sensitivity(report.sensitivity))
    if report.proofs:
        parts.append(proofs(report))
    if report.prunability is not None:
        parts.append(prunability(report.prunability))
    if report.frozen:
        parts.append(frozen(report.frozen))
    parts.extend(Text(f"note: {note}") for note in report.notes)
    return Group(*parts)


class Plain(Table):
    """A table whose strings are shown as they are: `f32[batch, 3]` is no markup."""

    def add_row(self, *cells: RenderableType | None, **style: Any) -> None:
        """Add a row; strings become literal text."""
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **style)


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the house style; the columns named in `right` are aligned right and never wrap."""
    made = Plain(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        min_width=len(title),  # a narrow table would wrap its title
    )
    for column in columns:
        if column in right:
            made.add_column(column, justify="right", no_wrap=True)
        else:
            made.add_column(column, overflow="fold")
    return made


def summary(report: Report) -> Table:
    """The two sides and their ratio, one line per measure that exists on either."""
    made = table("Before and after", "", "before", "after", "ratio", right=("before", "after", "ratio"))
    for label, before, after, ratio in _summary_rows(report):
        if (before, after) != (units.ABSENT, units.ABSENT):
            made.add_row(label, before, after, ratio)
    if report.output_error is not None:
        made.add_row(
            "output difference",
            "",
            f"max {units.significant(report.output_error.max)}, "
            f"mean {units.significant(report.output_error.mean)}",
            "",
        )
    if report.latency_budget is not None:
        budget = report.latency_budget
        made.add_row(
            "latency asked",
            units.milliseconds(budget.original_ms),
            f"{units.milliseconds(budget.measured_ms)} of {units.milliseconds(budget.asked_ms)}",
            units.ratio(budget.measured_ms / budget.original_ms),
        )
    if report.operators is not None:
        made.add_row(
            "INT8 operators", "", f"{report.operators.executed} of {report.operators.intended} meant", ""
        )
    return made


def _summary_rows(report: Report) -> Iterable[tuple[str, str, str, str]]:
    before, after = report.before, report.after

    def row(label: str, name: str, form: units.Form) -> tuple[str, str, str, str]:
        return label, form(getattr(before, name)), form(getattr(after, name)), units.ratio(report.ratio(name))

    yield row("parameters", "params", units.count)
    yield row("MACs per sample", "macs", units.count)
    yield row("ONNX file", "bytes", units.size)
    yield "latency", _latency(before), _latency(after), _latency_ratio(report)
    yield row("throughput", "throughput", units.per_second)
    yield row("peak memory", "peak_memory", units.size)
    yield "metric", _metric(before), _metric(after), _metric_change(before, after)


def _latency(side: Side) -> str:
    return units.milliseconds(side.latency_ms)


def _latency_ratio(report: Report) -> str:
    interval = report.latency_ratio
    if interval is None:
        return units.ratio(report.ratio("latency_ms"))
    return f"{interval.value:.3f}x [{interval.low:.3f}, {interval.high:.3f}]"


def _metric(side: Side) -> str:
    return units.ABSENT if side.metric is None else f"{side.metric:.4f}"


def _metric_change(before: Side, after: Side) -> str:
    if before.metric is None or after.metric is None:
        return units.ABSENT
    return f"{after.metric - before.metric:+.4f}"


def passes(report: Report) -> RenderableType:
    """The pass log: seconds, how many sites changed, how many were declined, and why."""
    made = table(
        f"Passes ({units.seconds(report.seconds)})" if report.seconds is not None else "Passes",
        "pass",
        "seconds",
        "changed",
        "declined",
        "why declined",
        right=("seconds", "changed", "declined"),
    )
    for entry in report.passes:
        made.add_row(
            entry.name,
            f"{entry.seconds:.2f}",
            str(len(entry.changed) or ""),
            str(len(entry.declined) or ""),
            reasons(entry.declined),
        )
    return made


def reasons(declined: Iterable[DeclinedSite]) -> str:
    """Each distinct reason once, with the number of sites; a single site is named."""
    sites = list(declined)
    counted = Counter(site.reason for site in sites)
    lines = []
    for reason, times in counted.most_common(4):
        first = next(site for site in sites if site.reason == reason)
        lines.append(f"{first.site}: {reason}" if times == 1 else f"{times} x {reason}")
    if len(counted) > 4:
        lines.append(f"and {len(counted) - 4} more reasons")
    return "\n".join(lines)


def frozen(entries: Sequence[FrozenEntry], rows: int = MAX_ROWS) -> RenderableType:
    """What could not be pruned, in the order given: axis, size, what it keeps, reason and the user's line."""
    made = table(
        "Frozen axes",
        "axis",
        "size",
        "keeps params",
        "keeps MACs",
        "reason",
        "source",
        right=("size", "keeps params", "keeps MACs"),
    )
    for entry in entries[:rows]:
        made.add_row(
            entry.axis,
            str(entry.size),
            units.count(entry.params),
            units.count(entry.macs),
            f"{entry.reason} ({entry.operator})" if entry.operator else entry.reason,
            entry.source or "",
        )
    if len(entries) > rows:
        made.add_row(f"and {len(entries) - rows} more", "", "", "", "report.json lists them", "")
    return made


def prunability(found: Prunability) -> Table:
    """How much of the parameters and MACs pruning can reach, and how much goes at most."""
    made = table("Prunability", "", "all", "prunable", "removable", right=("all", "prunable", "removable"))
    for label, reach in (("parameters", found.params), ("MACs per sample", found.macs)):
        made.add_row(
            label,
            units.count(reach.total),
            units.share(reach.prunable, reach.total),
            units.share(reach.removable, reach.total),
        )
    return made


def candidates(report: Report) -> Table:
    """The models that were timed for real before one was chosen."""
    right = ("latency", "file", "error", "metric")
    made = table("Candidates", "candidate", *right, "why", right=right)
    for entry in report.candidates:
        name = f"{entry.name} (chosen)" if entry.chosen else entry.name
        metric = units.ABSENT if entry.metric is None else f"{entry.metric:.4f}"
        error = units.ABSENT if entry.error is None else units.significant(entry.error)
        size = units.size(entry.bytes)
        made.add_row(name, units.milliseconds(entry.latency_ms), size, error, metric, entry.reason)
    return made


def frontier(points: Sequence[FrontierPoint]) -> Table:
    """The choices of precision between the fastest and the most accurate, as prices predict them."""
    right = ("in integers", "priced", "noise")
    made = table("Frontier of precision, predicted", *right, "timed as", right=right)
    for point in points:
        made.add_row(
            str(point.operators),
            units.milliseconds(point.latency_ms),
            units.significant(point.error),
            point.candidate or "",
        )
    return made


def sensitivity(layers: Sequence[LayerNoise], rows: int = WORST) -> Table:
    """The layers that quantization hurts most: by what each alone does to the outputs, else by its noise."""
    made = table(
        "Where int8 hurts",
        "layer",
        "outputs, alone",
        "SNR",
        "own SNR",
        "source",
        right=("outputs, alone", "SNR", "own SNR"),
    )
    for layer in layers[:rows]:
        alone = units.ABSENT if layer.alone is None else f"{100 * layer.alone:.2f} %"
        made.add_row(
            layer.module or layer.node,
            alone,
            f"{layer.snr_db:.0f} dB",
            f"{layer.own_db:.0f} dB",
            layer.source or "",
        )
    if len(layers) > rows:
        made.add_row(f"and {len(layers) - rows} more", "", "", "", "--json lists them")
    return made


def proofs(report: Report) -> Table:
    """Each oracle with the largest error it saw and the bound it had to stay under."""
    made = table("Proofs", "proof", "error", "bound", "what was compared", right=("error", "bound"))
    for proof in report.proofs:
        made.add_row(proof.name, f"{proof.error:.2e}", f"{proof.bound:.2e}", proof.detail)
    return made

"""What `benchmarks.quantization_accuracy` measured, in tables and against its goals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

POINTS = 0.5
"""What the upper bound of our drop may be at most, in points."""

OURS = "ours"
PER_TENSOR = "quantize_static per tensor"


@dataclass(frozen=True)
class Row:
    """One quantizer on one network, one calibration draw; `lost` has a number per test image."""

    subject: str
    quantizer: str
    seed: int
    drop: float
    flipped: float
    decibels: float
    seconds: float
    lost: tuple[int, ...]


def upper_bound(rows: Sequence[Row]) -> float:
    """The upper end of the 95 % interval of the drop in points: images are paired, and draws vary too."""
    lost = np.array([row.lost for row in rows], dtype=np.float64)
    images, draws = lost.mean(axis=0), lost.mean(axis=1)
    variance = images.var(ddof=1) / len(images)
    if len(draws) > 1:
        variance += draws.var(ddof=1) / len(draws)
    return 100.0 * float(lost.mean() + 1.96 * np.sqrt(variance))


def of(rows: Sequence[Row], subject: str, quantizer: str) -> list[Row]:
    """The rows of one quantizer on one network."""
    return [row for row in rows if (row.subject, row.quantizer) == (subject, quantizer)]


def mean(rows: Sequence[Row], figure: str) -> float:
    """The mean of a figure."""
    return float(np.mean([getattr(row, figure) for row in rows]))


def goals(rows: Sequence[Row], peers: Iterable[str]) -> list[tuple[str, bool]]:
    """What the benchmark promises, and whether it holds."""
    result, named = [], tuple(peers)
    for subject in dict.fromkeys(row.subject for row in rows):
        ours = of(rows, subject, OURS)
        bound = upper_bound(ours)
        if "spread" in subject:
            plain, kept = mean(of(rows, subject, PER_TENSOR), "drop"), mean(ours, "drop")
            text = f"{subject}: per-tensor min-max loses {plain:.1f} points (> 10), ours {kept:.2f} (<= 1)"
            result.append((text, plain > 10.0 and kept <= 1.0))
            continue
        result.append((f"{subject}: our drop is at most {bound:.2f} points (<= {POINTS})", bound <= POINTS))
        for name in named:
            theirs = of(rows, subject, name)
            flips, other = mean(ours, "flipped"), mean(theirs, "flipped")
            result.append((f"{subject}: flipped {flips:.2f} %, {name} {other:.2f} %", flips <= other))
            ratio, other = mean(ours, "decibels"), mean(theirs, "decibels")
            result.append((f"{subject}: logits {ratio:.1f} dB, {name} {other:.1f} dB", ratio >= other))
    return result


def table(rows: Sequence[Row], subject: str) -> Table:
    """All quantizers on one network, draws averaged."""
    made = Table(title=subject, title_justify="left")
    for heading in ("quantizer", "drop, points", "upper 95 %", "flipped, %", "logits, dB", "seconds"):
        made.add_column(heading, justify="left" if heading == "quantizer" else "right")
    for name in dict.fromkeys(row.quantizer for row in rows if row.subject == subject):
        found = of(rows, subject, name)
        figures = (mean(found, "drop"), upper_bound(found), mean(found, "flipped"), mean(found, "decibels"))
        made.add_row(name, *(f"{figure:.2f}" for figure in figures), f"{mean(found, 'seconds'):.1f}")
    return made

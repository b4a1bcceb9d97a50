"""The tables and the plot of the pruning accuracy benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table


class Point(Protocol):
    """What is shown of a measurement."""

    rule: str
    factor: float
    seed: int
    removal: float
    norms: float
    compensated: float | None


STEPS = ("removal", "norms", "compensated")


def saliency_table(
    rows: Sequence[Point], rules: Sequence[str], factors: Sequence[float], images: int
) -> Table:
    """Per rule and point: removal alone, batch norms re-estimated, compensated."""
    table = Table(
        title=f"test accuracy, %: removal alone / batch norms / compensated ({images} calibration images)"
    )
    table.add_column("rule")
    for factor in factors:
        table.add_column(f"{factor:g}x fewer MACs", justify="right")
    found = {(row.rule, row.factor): row for row in rows}
    for rule in rules:
        cells = [" / ".join(percent(getattr(found[rule, at], step)) for step in STEPS) for at in factors]
        table.add_row(rule, *cells)
    return table


def peer_table(
    rows: Sequence[Point], best: str, peers: Sequence[str], factors: Sequence[float], seeds: Sequence[int]
) -> Table:
    """Means over seeds of ours and the peer's."""
    table = Table(title=f"mean over seeds {', '.join(map(str, seeds))}, %; ours is the rule: {best}")
    table.add_column("")
    for factor in factors:
        table.add_column(f"{factor:g}x", justify="right")
    lines = [
        *((f"{peer}: {label}", peer, step) for peer in peers for label, step in _LABELS[:2]),
        *((f"ours: {label}", best, step) for label, step in _LABELS),
    ]
    for label, rule, step in lines:
        table.add_row(label, *(percent(mean(rows, rule, at, step)) for at in factors))
    return table


_LABELS = (
    ("removal alone", "removal"),
    ("batch norms re-estimated", "norms"),
    ("compensated", "compensated"),
)


def mean(rows: Sequence[Point], rule: str, factor: float, step: str) -> float:
    """The mean over seeds of one step at one point."""
    return float(np.mean([getattr(row, step) for row in rows if row.rule == rule and row.factor == factor]))


def percent(share: float | None) -> str:
    """`0.8125` as `81.2`."""
    return "" if share is None else f"{100 * share:.1f}"


def plot(path: Path, rows: Sequence[Point], best: str, peers: Sequence[str], base: float) -> None:
    """Accuracy against MACs as SVG, the same bytes for the same figures."""
    mpl.rcParams.update({"svg.hashsalt": "fxcompress", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    factors = sorted({row.factor for row in rows if row.rule == best})
    lines = [
        ("ours, compensated", best, "compensated", "#0b6e4f", "-", "o"),
        ("ours, batch norms re-estimated", best, "norms", "#0b6e4f", "--", "o"),
        ("ours, removal alone", best, "removal", "#0b6e4f", ":", "o"),
        *((f"{peer}, batch norms re-estimated", peer, "norms", "#b5482a", "--", mark) for peer, mark in
          zip(peers, ("s", "^"), strict=True)),
        (f"{peers[0]}, removal alone", peers[0], "removal", "#b5482a", ":", "s"),
    ]  # fmt: skip
    for label, rule, step, colour, style, mark in lines:
        heights = [100 * mean(rows, rule, factor, step) for factor in factors]
        axes.plot(factors, heights, style, color=colour, marker=mark, markersize=4, label=label)
    axes.axhline(100 * base, color="#555555", linewidth=0.8)
    axes.text(factors[-1], 100 * base - 1, "original", ha="right", va="top", fontsize=8)
    axes.set_xlabel("times fewer MACs (no training)")
    axes.set_ylabel("CIFAR-10 test accuracy, %")
    axes.set_xticks(factors, [f"{factor:g}x" for factor in factors])
    axes.set_ylim(0, 100)
    figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})

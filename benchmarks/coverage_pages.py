"""The rows of the coverage benchmark as a page, and the sentences that sum them up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.coverage_tools import TARGET, Row

ALLOWED = 0.52
"""Share of the MACs that may be left when a half was asked for."""

NEAR = 0.48
"""Share from which the MACs are those that were asked for."""

EXCUSED = 3
"""How many models of ours may keep more MACs."""

EXPLAINED = {
    "nasty_shuffled_halves": "halves of shuffled channels do not align with their pairs (ShuffleNet): frozen",
}
"""Models that keep more, and why; a small module may be nothing but an obstacle."""

_HOW = """# What can be pruned, and is right afterwards

Written by `python -m benchmarks.pruning_coverage --write`. Every model has random weights that hide nothing
(no norm at one, no bias or gate at zero) and is asked for half of its multiply-accumulates, with only the
layers that make the outputs protected and no help for any model.

- **fxcompress**: `Prune(ratio=0.5, protect_embeddings=False)`, everything else as it comes.
- **Torch-Pruning 1.6.1**: `MagnitudePruner` with group magnitude importance; its channel ratio is searched by
  bisection until the MACs are within a hundredth of a half, or as near as it comes in seven trials. Where the
  result crashes, 0.5, 0.25 and 0.75 are tried.

Columns: *runs*, the pruned model answers the example; *shapes*, its outputs have the shapes they had; *MACs*,
the share that is left by torch's own counter; *masked*, in float64 it computes what the original does with
the removed positions switched off where they are consumed and left out of every normalisation (`unclear`: it
does not, but what was removed is no channel of our analysis and is normalised over, see
`benchmarks/coverage_oracle.py`, or the model does not run in float64 at all); *ONNX*, it lowers (by our
lowering, for both) and ONNX Runtime agrees; *s*, seconds to prune. A dash is what was not reached.

The small modules (`nasty_...`) were written by us, one idea each. Four of them first held nothing that can be
pruned beside their idea, which is frozen with a reason (channels that are convolved over, addressed by
number, summed up one after the other, read by raw strides), and missed the half; they were given layers
beside it, since a half of nothing cannot be asked for. Bilinear forms were added to the counter of torch,
which has none.
"""


def page(rows: Sequence[Row]) -> str:
    """Markdown: how it was measured, the sums, one line per model."""
    lines = [_HOW, *(f"Measured with {stamp}." for stamp in sorted({row.stamp for row in rows})), ""]
    lines += ["## In short", ""]
    lines.extend(f"- {sentence}" for sentence in sentences(rows))
    for tool in dict.fromkeys(row.tool for row in rows):
        lines += ["", f"## {tool}", "", "| model | runs | shapes | MACs | masked | ONNX | s | |"]
        lines.append("|---|---|---|---|---|---|---|---|")
        lines.extend(_row(row) for row in rows if row.tool == tool)
    return "\n".join(lines) + "\n"


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the table says, per tool."""
    found: list[str] = []
    for tool in dict.fromkeys(row.tool for row in rows):
        mine = [row for row in rows if row.tool == tool]
        passed = [row for row in mine if row.passes]
        near = [row for row in mine if row.macs is not None and row.macs <= ALLOWED]
        found.append(
            f"{tool}: {_count(mine, 'runs')} of {len(mine)} run, {_count(mine, 'shapes')} keep their output "
            f"shapes, {sum(row.masked == 'yes' for row in mine)} are the original without what was removed, "
            f"{_count(mine, 'onnx')} run as ONNX and agree; {len(passed)} pass all of this, "
            f"{sum(row in near for row in passed)} of them with at most {ALLOWED} of the MACs left "
            f"(asked: {TARGET})."
        )
        found.append(f"{tool}, silently wrong: {_names(row for row in mine if row.silently_wrong)}.")
        dear = [row for row in passed if row not in near]
        if tool == "fxcompress":
            found.append(f"{tool}, more than {ALLOWED} left: {_named(dear)}.")
            found.append(f"{tool}, not every column: {_named(row for row in mine if not row.passes)}.")
            few = [f"{row.name} {row.macs:.2f}" for row in passed if row.macs is not None and row.macs < NEAR]
            why = "one channel of so small a module may be a tenth of it"
            found.append(f"{tool}, less than {NEAR} left ({why}): {', '.join(few) or 'none'}.")
    return found


def kept(rows: Sequence[Row]) -> bool:
    """Whether ours passes every column with half of the MACs left; three may keep more, and say why."""
    mine = [row for row in rows if row.tool == "fxcompress"]
    dear = [row for row in mine if row.macs is None or row.macs > ALLOWED]
    return (
        all(row.passes for row in mine)
        and len(dear) <= EXCUSED
        and all(row.name in EXPLAINED for row in dear)
    )


def _named(rows: Iterable[Row]) -> str:
    return "; ".join(f"{row.name} ({EXPLAINED.get(row.name, 'NOT EXPLAINED')})" for row in rows) or "none"


def _count(rows: Iterable[Row], column: str) -> int:
    return sum(bool(getattr(row, column)) for row in rows)


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(row.name for row in rows) or "none"


def _row(row: Row) -> str:
    left = "-" if row.macs is None else f"{row.macs:.2f}"
    marks = [_mark(row.runs), _mark(row.shapes), left, row.masked, _mark(row.onnx), f"{row.seconds:.1f}"]
    notes = "; ".join(row.notes).replace("|", "/").replace("\n", " ")[:120]
    return f"| {row.name} | {' | '.join(marks)} | {notes} |"


def _mark(value: bool) -> str:
    return "yes" if value else "no"

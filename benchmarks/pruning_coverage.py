"""What can be pruned, and is right afterwards: fxcompress and Torch-Pruning on the same models.

    python -m benchmarks.pruning_coverage [--only NAME ...] [--json FILE] [--resume] [--write]

Both are asked for half of the multiply-accumulates, with only the output layers protected and no help for any
model. `--json` keeps the rows; with `--resume` those of the same commit and packages are not measured again.
`--write` puts the table into docs/pruning_coverage.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.coverage_pages import kept, page, sentences
from benchmarks.coverage_subjects import subjects
from benchmarks.coverage_tools import TOOLS, Row
from benchmarks.coverage_worker import Worker
from benchmarks.stamp import stamped

PAGE = Path(__file__).parents[1] / "docs" / "pruning_coverage.md"


def main() -> int:
    """Measure what is missing, print, write; 0 when ours keeps its promise."""
    options = _options()
    console = Console(stderr=True)
    names = [name for name in subjects() if _wanted(name, options.only)]
    if not names:
        raise SystemExit(f"no model is called {', '.join(options.only)}")
    stamp = stamped(f"{options.limit:g} s at most per model")
    rows = _read(options.json) if options.resume and options.json else []
    rows = [row for row in rows if row.stamp == stamp]
    known = {(row.name, row.tool) for row in rows}
    worker = Worker(options.limit)
    start = time.perf_counter()
    for name in names:
        for tool in TOOLS:
            if (name, tool) not in known and tool in options.tool:
                row = replace(worker.judge(tool, name), stamp=stamp)
                rows.append(row)
                console.print(_line(row), highlight=False, soft_wrap=True)
                if options.json:
                    _write(options.json, rows)
    worker.close()
    rows = sorted((row for row in rows if row.name in names), key=lambda row: names.index(row.name))
    console.print(_table(rows))
    for sentence in sentences(rows):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s")
    if options.write:
        PAGE.write_text(page(rows), encoding="utf-8")
    return 0 if kept(rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="name or pattern; may be repeated")
    parser.add_argument("--tool", action="append", choices=list(TOOLS), help="one tool alone")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per model and tool")
    parser.add_argument("--json", type=Path, help="the rows, for machines")
    parser.add_argument("--resume", action="store_true", help="measure only what --json lacks")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    if options.write and (options.only or options.tool):
        parser.error("--write writes the whole page: leave out --only and --tool")
    options.tool = options.tool or list(TOOLS)
    return options


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _read(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _line(row: Row) -> str:
    left = "-" if row.macs is None else f"{row.macs:.3f}"
    notes = "; ".join(row.notes)[:150]
    return (
        f"{row.name:28} {row.tool:14} runs={row.runs} shapes={row.shapes} macs={left} masked={row.masked} "
        f"onnx={row.onnx} {row.seconds:.1f} s  {notes}"
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table("model", "tool", "runs", "shapes", "MACs left", "masked", "ONNX", "s")
    for row in rows:
        left = "" if row.macs is None else f"{row.macs:.3f}"
        marks = ("yes" if row.runs else "no", "yes" if row.shapes else "no", left, row.masked)
        table.add_row(row.name, row.tool, *marks, "yes" if row.onnx else "no", f"{row.seconds:.1f}")
    return table


if __name__ == "__main__":
    sys.exit(main())

"""The rows of the quantization benchmark as a page, the sentences that sum them up, and the verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

FLOAT, OURS, STATIC, NNCF = "float", "ours", "quantize_static", "nncf"
GEOMEAN = 1.15
"""How much faster than `quantize_static` ours has to be in geometric mean."""

_HOW = """# INT8 that never loses

Written by `python -m benchmarks.quantization --write`. Twelve architectures built from configurations with
random weights (times do not depend on them), 224x224 or 128 tokens, static at batch 1.

- **float**: our lowering of the model as it is.
- **ours**: `optimize(model, quantize="int8", calibration=...)`, whatever it chose to hand out.
- **quantize_static**: `onnxruntime.quantization` at its best setting (Q/DQ, `uint8` activations, `int8`
  weights per channel, after `quant_pre_process`), and
- **NNCF**: `nncf.quantize`, both on the file that `torch.onnx.export` writes; where that fails, on our float
  file.

All files of a model are timed in one process, alternated; the ratio of medians has a bootstrap interval over
rounds, *slower* means that it lies above 1.02, and a goal is missed when that happens in both of two separate
processes. Milliseconds are those of the first. The last four columns are the same files in OpenVINO, at its
own default precision for this CPU; a dash is what it does not load or dies of.
"""

Row = Mapping[str, Any]
Rows = Mapping[str, Row]


def page(rows: Rows) -> str:
    """Markdown: how it was measured, on what, the sums and one table per number of threads."""
    lines = [_HOW, *_measured_with(rows), ""]
    for threads in sorted({row["threads"] for row in rows.values()}):
        lines += [f"## {threads} thread{'s' if threads > 1 else ''}", ""]
        lines += [f"- {sentence}" for sentence in sentences(rows, threads)]
        lines += ["", *_table(rows, threads), ""]
    return "\n".join(lines)


def _measured_with(rows: Rows) -> list[str]:
    """A line per machine and set of versions; one, unless rows of several runs were kept."""
    return [
        f"Machine: {said}." for said in sorted({row["made"].get("with", "unknown") for row in rows.values()})
    ]


def sentences(rows: Rows, threads: int) -> list[str]:
    """The verdicts in words, and how the times were read where that was not the wall clock."""
    found = [f"{text}: {'yes' if kept else 'NO'}" for text, kept in verdicts(rows, threads)]
    mine = _of(rows, threads)
    if mine:
        rounds = [row["rounds"] for row in mine if "rounds" in row]
        if rounds:
            found.append(f"at least {min(rounds)} rounds in each of two processes")
        found.append(_apart(mine))
    if any(row["clock"] != "wall" for row in mine):
        found.append("times are processor times of one thread: the machine was shared")
    return found


def _apart(mine: list[Row]) -> str:
    """How far the files' outputs are from float's, so that none is fast for being wrong."""
    parts = []
    for label in (OURS, STATIC, NNCF):
        errors = [
            time["error"][label] for row in mine for time in row["times"] if label in time.get("error", {})
        ]
        if errors:
            parts.append(f"{label} {statistics.median(errors):.2f} (at most {max(errors):.2f})")
    return (
        "outputs apart from float's, as a share of their spread, median over models (random weights and two "
        f"calibration samples: a check, not an accuracy): {', '.join(parts)}"
    )


def verdicts(rows: Rows, threads: int) -> Iterator[tuple[str, bool]]:
    """Each goal with whether it is met."""
    mine = _of(rows, threads)
    lost = [row["model"] for row in mine if not _loads(row)]
    yield f"ours loads on {len(mine) - len(lost)} of {len(mine)} models{_named(lost)}", not lost
    slow = [row["model"] for row in mine if _slower(row, [FLOAT])]
    yield f"ours is never slower than float{_named(slow)}", not slow
    slow = [row["model"] for row in mine if _slower(row, [STATIC, NNCF])]
    alone = [row["model"] for row in mine if not _has(row, STATIC) and not _has(row, NNCF)]
    said = f"; none to compare with on {', '.join(alone)}" if alone else ""
    yield f"ours is never slower than the best of the others{_named(slow)}{said}", not slow
    ratios = [gain for row in mine if (gain := gain_over(row, STATIC)) is not None]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0
    text = f"geometric mean over quantize_static on {len(ratios)} models: {mean:.3f}x (asked: {GEOMEAN}x)"
    yield text, mean >= GEOMEAN


def gain_over(row: Row, label: str) -> float | None:
    """Time of a peer over time of ours, the geometric mean of both processes."""
    found = [time["ratios"][label][0] for time in row["times"] if label in time.get("ratios", {})]
    return math.exp(-sum(map(math.log, found)) / len(found)) if found else None


def _of(rows: Rows, threads: int) -> list[Row]:
    return [row for row in rows.values() if row["threads"] == threads]


def _loads(row: Row) -> bool:
    return all(OURS in time.get("ms", {}) for time in row["times"])


def _has(row: Row, label: str) -> bool:
    return any(label in time.get("ms", {}) for time in row["times"])


def _slower(row: Row, labels: list[str]) -> bool:
    """Whether in every process ours is slower than the fastest of some others there."""
    answers = []
    for time in row["times"]:
        times = {label: time["ms"][label] for label in labels if label in time.get("ms", {})}
        best = min(times, key=lambda label: times[label], default=None)
        answers.append(best is not None and bool(time["slower"].get(best, False)))
    return bool(answers) and all(answers)


def _named(names: list[str]) -> str:
    return f" (not on {', '.join(names)})" if names else ""


def _table(rows: Rows, threads: int) -> Iterator[str]:
    head = ["model", FLOAT, OURS, "quantize_static", "NNCF", "over float", "over static", "handed out"]
    head += ["OpenVINO float", "ours", "static", "NNCF"]
    yield "| " + " | ".join(head) + " |"
    yield "|---|" + "---:|" * 6 + "---|" + "---:|" * 4
    for row in _of(rows, threads):
        first = next((time for time in row["times"] if time.get("ms")), {})
        ms, other = first.get("ms", {}), row.get("openvino", {})
        cells = [row["model"], *(_ms(ms.get(label)) for label in (FLOAT, OURS, STATIC, NNCF))]
        cells += [_times(gain_over(row, FLOAT)), _times(gain_over(row, STATIC))]
        cells.append(str(row["made"].get("winner", "-")))
        cells += [_ms(other.get(label)) for label in (FLOAT, OURS, STATIC, NNCF)]
        yield "| " + " | ".join(cells) + " |"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"

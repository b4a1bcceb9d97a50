"""Twelve architectures in INT8: ours, ONNX Runtime's quantizer and NNCF, timed against float and each other.

Every model has a worker process for each step, so that one failure or timeout does not lose the rest: one
makes the files, two more time them independently, all files of a model alternated in one process, and one
for each file runs it in OpenVINO. Goals, for which the exit code stands: on no row ours is slower (interval
above 1.02, in both processes) than the fastest of the others or than float; it is at least 1.15 times faster
than `quantize_static` in geometric mean; every file of ours loads.

    rm -rf out/quantization
    python -m benchmarks.quantization --json out/quantization/rows.json --write
    python -m benchmarks.quantization --json out/quantization/rows.json --write --resume --threads 2

The second call adds a table to the same page: it keeps the peers' files and makes ours again. With `--resume`
rows of the JSON file are kept, so a run that was stopped goes on. Kernel times are cached beside the files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.quantization_models import BY_NAME
from benchmarks.quantization_page import FLOAT, NNCF, OURS, STATIC, page, sentences, verdicts

PAGE = Path("docs/quantization.md")
PROCESSES = 2
LIMIT = 900.0
"""Seconds that one step of one model may take."""

Rows = dict[str, Any]
"""`"ViT-S/16, 1"` (model and threads) to what its workers said."""


def main() -> int:
    """Make, time, print and, where asked, write; 0 when every goal holds."""
    options = _options()
    rows: Rows = {}
    if options.json is not None and options.resume and options.json.is_file():
        rows = json.loads(options.json.read_text())
    start = time.perf_counter()
    for name in options.only or BY_NAME:
        key = f"{name}, {options.threads}"
        if key in rows and options.resume:
            continue
        rows[key] = _row(name, options)
        print(f"[{time.perf_counter() - start:5.0f} s] {_said(name, rows[key])}", flush=True)
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    for sentence in sentences(rows, options.threads):
        print(sentence)
    if options.write:
        order = list(BY_NAME)
        PAGE.write_text(page(dict(sorted(rows.items(), key=lambda item: order.index(item[1]["model"])))))
    return 0 if all(kept for _, kept in verdicts(rows, options.threads)) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(BY_NAME), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=40, help="alternated rounds of each process")
    parser.add_argument("--files", type=Path, default=Path("out/quantization"), help="where the files go")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the JSON file has")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE}")
    parser.add_argument(
        "--clock", choices=["wall", "thread"], default="wall", help="thread: on a machine that is shared"
    )
    parser.add_argument("--no-openvino", action="store_true", help="leave OpenVINO out")
    options = parser.parse_args()
    if options.threads > 1 and options.clock == "thread":
        parser.error("--clock thread counts one thread only")
    if options.write and options.only:
        parser.error("--write writes the whole page: leave out --only")
    return options


def _row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make the files, then time them in two processes; what fails is written into the row."""
    row: dict[str, Any] = {"model": name, "threads": options.threads, "clock": options.clock}
    row["rounds"] = options.rounds
    folder = options.files / name.replace("/", "-")
    row["made"] = _work("make", name, folder, options)
    if "failed" in row["made"]:
        return {**row, "times": [row["made"]] * PROCESSES, "openvino": {}, "openvino_errors": {}}
    row["times"] = [_work("time", name, folder, options) for _ in range(PROCESSES)]
    if not options.no_openvino:  # a process for each file: it dies of some
        labels = (FLOAT, OURS, STATIC, NNCF)
        found = {label: _work("openvino", name, folder, options, "--label", label) for label in labels}
        row["openvino"] = {label: answer.get("ms") for label, answer in found.items()}
        failed = {label: answer["failed"] for label, answer in found.items() if "failed" in answer}
        row["openvino_errors"] = failed
    return row


def _work(what: str, name: str, folder: Path, options: argparse.Namespace, *extra: str) -> dict[str, Any]:
    """Run one step in a process of its own; its JSON, or the reason why there is none."""
    command = [sys.executable, "-m", "benchmarks.quantization_worker", what, name, str(folder)]
    command += [str(options.threads), "--rounds", str(options.rounds), "--clock", options.clock, *extra]
    cache = str(options.files.absolute() / "kernel-times")  # removed with the files
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FXCOMPRESS_CACHE": cache}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {LIMIT:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _said(name: str, row: dict[str, Any]) -> str:
    """One line of progress."""
    parts = []
    for time_ in row["times"]:
        shown = " ".join(f"{label} {ms:.2f}" for label, ms in time_.get("ms", {}).items())
        parts.append(shown or time_.get("failed", "nothing timed"))
    errors = {**row["made"].get("errors", {}), **row["times"][0].get("errors", {})}
    if "failed" in row["made"]:
        errors["make"] = row["made"]["failed"]
    troubles = "".join(f"; {label}: {text[:90]}" for label, text in errors.items())
    return f"{name} ({row['made'].get('winner', '-')}): {' | '.join(parts)}{troubles}"


if __name__ == "__main__":
    sys.exit(main())

"""What the compiler promises on a ResNet-50 of the standard shape; run by `make bench`.

Analysis under 0.2 s; `optimize(prune=0.5, quantize="int8")` with 32 calibration images under 90 s on two
cores; INT8 at least 1.8x faster than float in one alternated run (on a CPU with VNNI) and at least 3.8x
smaller. Exits non-zero when a promise that this machine can keep is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import fxcompress
from benchmarks.resnet50_model import ResNet50
from fxcompress.analysis.cost import cost
from fxcompress.analysis.groups import analyse
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.report import tables, units
from fxcompress.runtime.timing import compare

IMAGES = 32
PARAMS = 25_557_032
CPU_FLAGS = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Line:
    """One figure: what was measured, its bound, and whether it holds.

    A figure without a bound promises nothing; `kept` is None for it and for what this machine cannot judge.
    """

    name: str
    value: float
    bound: str
    kept: bool | None
    detail: str = ""


def main() -> int:
    """Measure, print, and write JSON where asked; 0 when every promise holds."""
    options = _options()
    console = Console(stderr=True)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = ResNet50().eval()
    images = [
        torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(i)) for i in range(IMAGES // 8)
    ]
    program = capture(model, images[0][:2])
    lines = [*_shape(program), *_analysis(program)]
    console.print("analysis done; optimize with prune=0.5 and int8 ...")
    lines.append(_whole_path(model, images))
    console.print("optimize done; int8 alone against float ...")
    lines.extend(_int8(model, images, options.rounds))
    Console().print(_view(lines))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    return 0 if all(line.kept is not False for line in lines) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=30, help="alternated rounds of the timing")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch while optimizing")
    return parser.parse_args()


def _shape(program: Program) -> Iterator[Line]:
    found = cost(program)
    yield Line("parameters (M)", found.params / 1e6, "25.56", found.params == PARAMS)
    yield Line("GMACs per image", found.macs / 1e9, "4.09", abs(found.macs / 1e9 - 4.09) < 0.01)


def _analysis(program: Program) -> Iterator[Line]:
    """The first run of the process, which also fills caches, and the fastest of five that follow."""
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        analysis = analyse(program)
        taken.append(time.perf_counter() - start)
    fastest = min(taken[1:])
    yield Line("first analysis, cold (s)", taken[0], "", None)
    yield Line(
        "analysis, best of five warm (s)", fastest, "< 0.2", fastest < 0.2, f"{len(analysis.groups)} groups"
    )


def _whole_path(model: ResNet50, images: list[Tensor]) -> Line:
    start = time.perf_counter()
    result = fxcompress.optimize(model, images[0][:2], prune=0.5, quantize="int8", calibration=images)
    seconds = time.perf_counter() - start
    macs, size = result.report.ratio("macs"), result.report.ratio("bytes")
    detail = f"MACs {units.ratio(macs)}, file {units.ratio(size)}"
    return Line("optimize, prune and int8 (s)", seconds, "< 90", seconds < 90, detail)


def _int8(model: ResNet50, images: list[Tensor], rounds: int) -> Iterator[Line]:
    """INT8 against float, both from the same unpruned model, in one alternated run."""
    plain = fxcompress.optimize(model, images[0][:2]).onnx.SerializeToString()
    small = fxcompress.optimize(
        model, images[0][:2], quantize="int8", calibration=images
    ).onnx.SerializeToString()
    name = next(iter(capture(model, images[0][:2]).signature.inputs))
    comparison = compare({"float": plain, "int8": small}, {name: images[0][:1].numpy()}, rounds=rounds)
    ratio = comparison.ratio("float", "int8")
    vnni = CPU_FLAGS.is_file() and "vnni" in CPU_FLAGS.read_text()
    detail = (
        f"{units.milliseconds(comparison.median_ms['float'])} to "
        f"{units.milliseconds(comparison.median_ms['int8'])}, interval [{ratio.low:.2f}, {ratio.high:.2f}]"
    )
    yield Line(
        "int8 faster than float (x)", ratio.value, ">= 1.8", ratio.value >= 1.8 if vnni else None, detail
    )
    smaller = len(plain) / len(small)
    yield Line("int8 smaller than float (x)", smaller, ">= 3.8", smaller >= 3.8, units.size(len(small)))


def _view(lines: list[Line]) -> Any:
    made = tables.table("ResNet-50", "", "measured", "promised", "", "", right=("measured", "promised"))
    verdicts = {True: "kept", False: "BROKEN", None: "not judged: no VNNI"}
    for line in lines:
        verdict = verdicts[line.kept] if line.bound else ""
        made.add_row(line.name, units.significant(line.value), line.bound, verdict, line.detail)
    return made


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory of calibration with entropy, by the number of samples: ours, and ONNX Runtime's quantizer.

Users ran out of 123 GB with 32 samples (onnxruntime issues 10503 and 11020): as it is called, its calibrator
keeps every value of every activation until the end. An option that is named for min-max
(`CalibStridedMinMax`) makes it take the data in parts, by entropy too; it is the third column. Ours keeps one
histogram per tensor. Each figure is the peak
resident memory of a fresh process that calibrates a ResNet-20 on samples made as they are asked for.

    python -m benchmarks.calibration_memory

Exit code 1 when ours grows by more than a tenth, or is not below the other's.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.resnet20_model import ResNet20
from fxcompress.analysis.calibration import calibrate
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.numerics.ranges import ESTIMATORS
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import tensors_to_observe
from fxcompress.recipes import LOSSLESS
from fxcompress.targets.catalog import resolve

BATCH = 16
COUNTS = (128, 512, 1024)
OURS_ONLY = 10_000
"""More samples, for ours alone: the other would need some twenty gigabytes."""

GROWTH = 1.1


def samples(count: int) -> Iterator[Tensor]:
    """Batches of noise, made one at a time."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // BATCH):
        yield torch.randn(BATCH, 3, 32, 32, generator=generator)


class Reader(CalibrationDataReader):
    """Hands out the same batches."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._batches, self._count = name, samples(count), count // BATCH
        self._left = self._count

    def get_next(self) -> dict[str, object] | None:
        if self._left == 0:
            return None
        self._left -= 1
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch.numpy()}

    def __len__(self) -> int:
        return self._count

    def set_range(self, start_index: int, end_index: int) -> None:
        """How many of the following batches are handed out; the parts come in order."""
        self._left = end_index - start_index


def network() -> nn.Module:
    """A ResNet-20: some thirty tensors, 1.2 MB of activations per sample."""
    torch.manual_seed(0)
    return ResNet20().eval()


def ours(count: int) -> None:
    """Ranges of everything that is quantized, by entropy."""
    program = Journal().apply_all(LOSSLESS, capture(network(), (torch.randn(2, 3, 32, 32),)))
    observed = tensors_to_observe(program, resolve("onnxruntime"))
    calibrate(program, samples(count), observed, estimator=ESTIMATORS["entropy"])


def theirs(count: int, **options: Any) -> None:
    """The same with `quantize_static`."""
    model = lower(capture(network(), (torch.randn(2, 3, 32, 32),)))
    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder, "f.onnx"))
        onnx.save(model, source)
        quantize_static(
            source,
            str(Path(folder, "q.onnx")),
            Reader(model.graph.input[0].name, count),
            quant_format=QuantFormat.QDQ,
            calibrate_method=CalibrationMethod.Entropy,
            extra_options=options,
        )


STRIDED = "quantize_static, strided"
KINDS: dict[str, Callable[[int], None]] = {
    "fxcompress": ours,
    "quantize_static": theirs,
    STRIDED: partial(theirs, CalibStridedMinMax=1),
}


def peak(kind: str, count: int) -> float:
    """Megabytes at the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.calibration_memory", "--one", kind, "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def goals(found: dict[str, dict[int, float]]) -> list[tuple[str, bool]]:
    """What the benchmark promises, and whether it holds."""
    mine = found["fxcompress"]
    most, least = max(mine.values()), min(mine.values())
    text = f"ours takes {least:.0f} to {most:.0f} MB for {min(mine)} to {max(mine)} samples"
    result = [(text, most <= GROWTH * least)]
    for count, other in found["quantize_static"].items():
        text = f"{count} samples: ours {mine[count]:.0f} MB, quantize_static {other:.0f} MB"
        result.append((text, mine[count] < other))
    return result


def main() -> int:
    """Measure, print, and write where asked; 0 when the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="*", type=int, default=COUNTS, help="calibration samples")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--one", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        logging.disable(logging.WARNING)
        KINDS[options.one](options.count)
        sys.stdout.write(f"\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}\n")
        return 0
    found = {kind: {count: peak(kind, count) for count in options.counts} for kind in KINDS}
    found["fxcompress"][OURS_ONLY] = peak("fxcompress", OURS_ONLY)
    console = Console(width=110)
    table = Table(
        "samples", *(f"{kind}, MB" for kind in KINDS), title="Peak memory of calibration by entropy"
    )
    for count in found["fxcompress"]:
        table.add_row(
            str(count), *(f"{column[count]:.0f}" if count in column else "" for column in found.values())
        )
    console.print(table)
    verdicts = goals(found)
    for text, kept in verdicts:
        console.print(f"{'kept' if kept else 'MISSED'}: {text}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"megabytes": found, "goals": verdicts}, indent=1) + "\n")
    return 0 if all(kept for _, kept in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The whole path on real images: train, optimize, show what came out and what it cost. Run by `make demo`.

Exits non-zero unless the result has at most 0.51 of the MACs, a file at least five times smaller, and is not
slower than the original. The accuracy after pruning and INT8, without any fine-tuning, is printed as it is.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from rich.console import Console

import fxcompress
from examples import digits
from fxcompress.cli.console import Steps
from fxcompress.errors import CompressError
from fxcompress.report import tables
from fxcompress.report.report import Report

MAX_MACS = 0.51
MAX_BYTES = 1 / 5
MAX_SLOWDOWN = 1.02
CALIBRATION_IMAGES = 256


def main() -> int:
    """Train, optimize, print, save; 0 when the promises above hold."""
    options = _options()
    console = Console()
    logging.basicConfig(format="%(message)s")
    logging.getLogger(digits.__name__).setLevel(logging.INFO)
    start = time.perf_counter()
    data = digits.load()
    console.print(
        f"scikit-learn digits at {digits.SIZE}x{digits.SIZE}: {len(data.train.labels)} images to train on, "
        f"{len(data.validation.labels)} to validate, {len(data.test.labels)} to test"
    )
    model = digits.train(data, epochs=options.epochs)
    validation = digits.accuracy(model, data.validation)
    console.print(f"trained in {time.perf_counter() - start:.1f} s: validation accuracy {validation:.4f}")
    images = data.train.images[:CALIBRATION_IMAGES]
    with Steps() as step:
        result = fxcompress.optimize(
            model,
            images[:2],
            prune=0.5,
            quantize="int8",
            calibration=images.split(32),
            evaluate=lambda forward: digits.accuracy(forward, data.test),
            progress=step,
        )
    console.print(tables.overview(result.report))
    result.save(options.output)
    console.print(f"wrote {options.output}/ in {time.perf_counter() - start:.1f} s altogether")
    return _verdict(result.report, console)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/demo"), help="folder for the four files")
    parser.add_argument("--epochs", type=int, default=digits.EPOCHS, help="passes over the training images")
    return parser.parse_args()


def _verdict(report: Report, console: Console) -> int:
    """Check the promises; a broken one is named and makes the exit code 1."""
    macs, size = report.ratio("macs"), report.ratio("bytes")
    slowdown = report.latency_ratio.low if report.latency_ratio is not None else None
    promises = {
        f"MACs at most {MAX_MACS}": macs is not None and macs <= MAX_MACS,
        "file at least 5x smaller": size is not None and size <= MAX_BYTES,
        "not slower": slowdown is not None and slowdown <= MAX_SLOWDOWN,
    }
    for promise, kept in promises.items():
        console.print(f"{'kept' if kept else 'BROKEN'}: {promise}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CompressError as error:
        sys.exit(f"error: {error}")

"""`fxcompress bench`: two or more ONNX files against each other, in one alternated run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fxcompress.cli.console import Steps, emit, show
from fxcompress.cli.feeds import feeds_for
from fxcompress.cli.options import batch_option, json_option, threads_option
from fxcompress.cli.specs import existing, npz
from fxcompress.report import tables, units
from fxcompress.runtime.timing import Comparison, compare


@click.command(no_args_is_help=True, short_help="Time ONNX files against each other.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="A.onnx B.onnx...")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    default=30,
    show_default=True,
    help="Alternated rounds.",
)
@click.option("--inputs", type=click.Path(path_type=Path), help="A .npz of inputs by name; random otherwise.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NAME=N",
    help="Size of a dynamic dimension, such as sequence=128.",
)
@batch_option
@threads_option
@json_option
def bench(
    files: tuple[Path, ...],
    rounds: int,
    inputs: Path | None,
    sizes: tuple[str, ...],
    batch: int,
    threads: int,
    as_json: bool,
) -> None:
    """Time ONNX files against each other on the same inputs; the first is the baseline.

    Every round runs each file once, in rotating order, so that the machine's drift falls on all of them. The
    ratio of medians comes with a 95 % bootstrap interval; a file is called slower or faster only when the
    whole interval is more than 2 % away from one.

    \b
    Examples:
      fxcompress bench float.onnx out/model.onnx
      fxcompress bench float.onnx int8.onnx --batch 8 --threads 2 --json
    """
    models = {label: str(existing(file)) for label, file in _labels(files).items()}
    feeds = (
        npz(inputs) if inputs else feeds_for(files[0], batch=batch, sizes=dict(_size(item) for item in sizes))
    )
    batch = next((len(value) for value in feeds.values() if value.ndim), 1)
    with Steps() as step:
        step(f"timing {len(files)} files, {rounds} rounds")
        comparison = compare(models, feeds, threads=threads, rounds=rounds)
    if as_json:
        emit(_dict(comparison, models, batch))
    else:
        show(_view(comparison, models, batch))


def _labels(files: tuple[Path, ...]) -> dict[str, Path]:
    """Short distinct names: the file's own where they differ, else the path as given, else numbered."""
    for names in ([file.name for file in files], [str(file) for file in files]):
        if len(set(names)) == len(files):
            return dict(zip(names, files, strict=True))
    return {f"{file} ({index})": file for index, file in enumerate(files, 1)}


def _size(item: str) -> tuple[str, int]:
    name, _, number = item.partition("=")
    if not name or not number.isdigit() or int(number) < 1:
        raise click.BadParameter(f"{item!r} is not NAME=N", param_hint="--size")
    return name, int(number)


def _verdict(comparison: Comparison, label: str, base: str) -> str:
    if label == base:
        return "baseline"
    if comparison.slower(label, base):
        return "slower"
    return "faster" if comparison.slower(base, label) else "tie"


def _dict(comparison: Comparison, models: dict[str, str], batch: int) -> dict[str, Any]:
    base = next(iter(models))
    entries = []
    for label, path in models.items():
        ratio = comparison.ratio(label, base)
        entries.append(
            {
                "file": path,
                "bytes": Path(path).stat().st_size,
                "latency_ms": comparison.median_ms[label],
                "throughput": comparison.throughput(label, batch),
                "ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high},
                "verdict": _verdict(comparison, label, base),
            }
        )
    return {
        "batch": batch,
        "threads": comparison.threads,
        "rounds": comparison.rounds,
        "baseline": models[base],
        "models": entries,
    }


def _view(comparison: Comparison, models: dict[str, str], batch: int) -> Any:
    base = next(iter(models))
    title = f"Batch {batch}, {comparison.threads} thread(s), {comparison.rounds} alternated rounds"
    numbers = ("size", "latency", "samples", "ratio")
    made = tables.table(title, "file", *numbers, "", right=numbers)
    for label, path in models.items():
        ratio = comparison.ratio(label, base)
        made.add_row(
            label,
            units.size(Path(path).stat().st_size),
            units.milliseconds(comparison.median_ms[label]),
            units.per_second(comparison.throughput(label, batch)),
            units.ABSENT if label == base else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            _verdict(comparison, label, base),
        )
    return made

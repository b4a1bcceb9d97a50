"""What INT8 costs in accuracy, without any training: ours, ONNX Runtime's quantizer and NNCF.

Four networks: a trained ResNet-20 with real images (`--data`), and, trained on scikit-learn's digits, a
residual CNN, a transformer some of whose channels are far wider than the others, and a depthwise network
whose channels are spread over many powers of two. For several draws of the same calibration images
every quantizer makes a file from the same float file (our lowering); all run in ONNX Runtime. Everything that
has an integer kernel runs in int8 (`precision="full"`), as it does in the other two. Measured on test images
against the float file: the accuracy lost, the share of predictions that flip, and the ratio of logits to
their errors in decibels. Each technique of ours is also measured alone, added to plain min-max ranges.

    python -m benchmarks.quantization_accuracy --data FOLDER

Exit code 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from benchmarks import cifar_images, digits_training, hostile_model, resnet20_model, token_model
from benchmarks.quantization_accuracy_views import OURS, PER_TENSOR, Row, goals, table
from benchmarks.quantization_peers import PEERS, quantize_static_best
from examples import digits
from fxcompress.api import quantizing
from fxcompress.api.request import Request
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower
from fxcompress.passes.quantize_weights import QuantizeWeights
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import Quantize
from fxcompress.recipes import LOSSLESS, recipe_of
from fxcompress.runtime.session import open_session
from fxcompress.targets.catalog import resolve

SEEDS = 5
ALONE = 2
"""Calibration draws of the techniques that are measured alone."""
IMAGES = 512
BATCH = 32
PLAIN = Quantize(precision="full", equalize=False, smooth=False, correct_bias=False, calibrator="minmax")
BASE = "min-max alone"


def _with(**options: Any) -> Quantize:
    return Quantize(**{**vars(PLAIN), **options})


TECHNIQUES: Mapping[str, Quantize] = {
    BASE: PLAIN,
    "moving average": _with(calibrator="average"),
    "percentile": _with(calibrator="percentile"),
    "mse": _with(calibrator="mse"),
    "entropy": _with(calibrator="entropy"),
    "mse of weights": _with(weight_range="mse"),
    "equalization": _with(equalize=True),
    "migration out of norms": _with(smooth=True),
    "bias correction": _with(correct_bias=True),
    "adaptive rounding": _with(rounding="adaptive"),
    "mse, adaptive rounding, biases": _with(calibrator="mse", rounding="adaptive", correct_bias=True),
}
"""Each alone, beside min-max; the last row is the most that is offered for the asking."""

Quantizer = Callable[[Sequence[Tensor]], onnx.ModelProto]


@dataclass(frozen=True)
class Subject:
    """A trained network with images: what calibration draws from, and the test."""

    name: str
    model: nn.Module
    pool: Tensor
    images: Tensor
    labels: NDArray[Any]


def subjects(data: Path | None) -> list[Subject]:
    """The networks; those of the digits are trained on the spot and kept beside other temporary files."""
    held = digits.load()
    found = [
        _of_digits("digits CNN", held, partial(digits.train, held), digits.DigitNet),
        _of_digits(
            "digits transformer, wide", held, partial(token_model.trained, held), token_model.TokenNet
        ),
        _of_digits(
            "depthwise, spread", held, partial(hostile_model.trained, held), hostile_model.DepthwiseNet
        ),
    ]
    token_model.widen(found[1].model)  # type: ignore[arg-type]
    hostile_model.spread(found[2].model)  # type: ignore[arg-type]
    if data is not None:
        images = cifar_images.load(data)
        net = resnet20_model.trained(data)
        found.insert(0, Subject("ResNet-20", net, images.train, images.test, images.test_labels.numpy()))
    return found


def _of_digits(
    name: str, held: digits.Digits, train: Callable[[], nn.Module], build: type[nn.Module]
) -> Subject:
    """A network as it was trained before, if by the same source files and version of torch."""
    sources = {Path(inspect.getfile(item)) for item in (build, digits, digits_training)}
    recipe = b"".join(path.read_bytes() for path in sorted(sources)) + torch.__version__.encode()
    digest = hashlib.blake2b(recipe, digest_size=6).hexdigest()
    kept = Path(tempfile.gettempdir()) / f"fxcompress-accuracy-{digest}.pt"
    model = build()
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
    else:
        model = train()
        part = kept.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), part)
        part.replace(kept)
    return Subject(name, model.eval(), held.train.images, held.test.images, held.test.labels.numpy())


def quantized(program: Program, options: Quantize, batches: Sequence[Tensor]) -> onnx.ModelProto:
    """The file of our fully quantized variant, made as `optimize` makes it."""
    request = Request(
        recipe=recipe_of(None, options),
        calibration=batches,
        target=resolve("onnxruntime"),
    )
    journal = Journal()
    deployed = journal.apply_all(request.recipe.after, program)
    calibration = quantizing.Calibration(batches, batches)
    made = quantizing.quantized(request, deployed, calibration, journal).variants
    return lower(made[0].program)


def in_blocks(program: Program, fitted: bool, batches: Sequence[Tensor]) -> onnx.ModelProto:
    """The file whose linears have int4 weights, one scale per 32: by GPTQ, or to the nearest."""
    stage = QuantizeWeights(bits=4, smallest=1, calibration=batches if fitted else None)
    return lower(Journal().apply_all([*LOSSLESS, stage], program))


def peer(model: onnx.ModelProto, make: Callable[..., bytes], batches: Sequence[Tensor]) -> onnx.ModelProto:
    """A peer's file, of the same float file and batches."""
    name = model.graph.input[0].name
    return onnx.load_from_string(
        make(model.SerializeToString(), [{name: batch.numpy()} for batch in batches])
    )


def logits(model: onnx.ModelProto, images: Tensor) -> NDArray[Any]:
    """What a file answers to all images."""
    session = open_session(model)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part.numpy()})[0] for part in images.split(100)])


def measure(subject: Subject, seeds: int, console: Console) -> list[Row]:
    """All rows of one network."""
    program = capture(subject.model, (subject.pool[:4],))
    model = lower(program)
    exact = logits(model, subject.images)
    makers: dict[str, Quantizer] = {OURS: partial(quantized, program, Quantize(precision="full"))}
    makers |= {name: partial(peer, model, make) for name, make in PEERS.items()}
    makers[PER_TENSOR] = partial(peer, model, partial(quantize_static_best, per_channel=False))
    alone: dict[str, Quantizer] = {
        name: partial(quantized, program, options) for name, options in TECHNIQUES.items()
    }
    alone["int4 weights, to the nearest"] = partial(in_blocks, program, False)
    alone["int4 weights, GPTQ"] = partial(in_blocks, program, True)
    rows = []
    for seed in range(seeds):
        drawn = torch.randperm(len(subject.pool), generator=torch.Generator().manual_seed(seed))[:IMAGES]
        batches = [part.contiguous() for part in subject.pool[drawn].split(BATCH)]
        for name, make in (makers | alone if seed < ALONE else makers).items():
            start = time.perf_counter()
            made = make(batches)
            seconds = time.perf_counter() - start
            rows.append(
                _row((subject.name, name, seed), exact, logits(made, subject.images), subject.labels, seconds)
            )
        console.print(f"{subject.name}: seed {seed} done", style="dim")
    return rows


def _row(
    key: tuple[str, str, int], exact: NDArray[Any], found: NDArray[Any], labels: NDArray[Any], seconds: float
) -> Row:
    right, still = exact.argmax(1) == labels, found.argmax(1) == labels
    lost = right.astype(int) - still.astype(int)
    noise = float(np.square(found - exact).sum())
    return Row(
        *key,
        drop=100.0 * float(lost.mean()),
        flipped=100.0 * float((found.argmax(1) != exact.argmax(1)).mean()),
        decibels=10.0 * float(np.log10(np.square(exact).sum() / max(noise, 1e-30))),
        seconds=seconds,
        lost=tuple(int(each) for each in lost),
    )


def main() -> int:
    """Measure, print, and write where asked; 0 when the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with resnet20.pt and the images; left out without")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="calibration draws")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", help="networks whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    console = Console(width=110)
    rows: list[Row] = []
    for subject in subjects(options.data):
        if options.only is None or options.only in subject.name:
            rows += measure(subject, options.seeds, console)
            console.print(table(rows, subject.name))
    if not rows:
        parser.error(f"no network is called {options.only}")
    verdicts = goals(rows, PEERS)
    measured = dict.fromkeys(row.subject for row in rows)
    text = f"{options.seeds} draws (>= {SEEDS}) of {', '.join(measured)}"
    verdicts.append((text, options.seeds >= SEEDS and {"ResNet-20", "digits CNN"} <= measured.keys()))
    for text, kept in verdicts:
        console.print(f"{'kept' if kept else 'MISSED'}: {text}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = [{**asdict(row), "lost": sum(row.lost)} for row in rows]
        options.json.write_text(json.dumps({"rows": found, "goals": verdicts}, indent=1) + "\n")
    return 0 if all(kept for _, kept in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())

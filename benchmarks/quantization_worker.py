"""One model of the quantization benchmark in a process of its own: make the files, or time them.

    python -m benchmarks.quantization_worker make "ViT-S/16" FOLDER 1
    python -m benchmarks.quantization_worker time "ViT-S/16" FOLDER 1 --rounds 40
    python -m benchmarks.quantization_worker openvino "ViT-S/16" FOLDER 1 --label ours

The result is a line of JSON. Everything is static at batch 1, as `torch.onnx.export` writes it: the peers
read its file (or our lowering, where it cannot export the model), and ours gets the same exported program.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import fxcompress
from benchmarks.quantization_models import BY_NAME, Batch, Subject
from benchmarks.quantization_peers import PEERS, openvino_ms
from benchmarks.stamp import stamped
from fxcompress.lowering.lower import lower
from fxcompress.runtime.session import open_session, run
from fxcompress.runtime.timing import SLOWER, compare

FLOAT, OURS = "float", "ours"
LABELS = (FLOAT, OURS, *PEERS)
SAMPLES = 2
"""Calibration samples of every quantizer: ranges and biases depend on them, times do not."""
LONG = 0.5
"""Steps of `optimize` that take more seconds than this are listed."""
PATIENCE = 12.0
"""Soft bound in seconds on one alternated run; it lowers the calls per round, never the rounds."""

_CPU = Path("/proc/cpuinfo")
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "asimddp", "i8mm")
_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "thread": time.thread_time}


def main() -> None:
    """Do as asked and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(_STEPS))
    parser.add_argument("name", choices=list(BY_NAME))
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clock", choices=list(_CLOCKS), default="wall")
    parser.add_argument("--label", choices=LABELS, default=OURS, help="the file that OpenVINO runs")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    subject = BY_NAME[options.name]
    print("\n" + json.dumps(_STEPS[options.what](subject, options)))


def path_of(folder: Path, label: str, threads: int) -> Path:
    """Where a file of a model lies; ours depends on the threads it is chosen for."""
    return folder / (f"{label}-{threads}.onnx" if label == OURS else f"{label}.onnx")


def make(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Write every file of the peers that is not there yet, and ours always. Returns seconds and errors."""
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for label in (FLOAT, OURS):  # never those of another commit
        path_of(folder, label, options.threads).unlink(missing_ok=True)
    model, example = subject.model(), subject.batch(1)
    exported = torch.export.export(model, *_call(example))
    program = fxcompress.capture(exported)
    result: dict[str, Any] = {"seconds": {}, "errors": {}, "with": f"{_machine()}; {stamped()}"}
    names = list(program.signature.inputs)
    steps: dict[str, Callable[[], bytes]] = {
        FLOAT: lambda: lower(program).SerializeToString(),
        "exported": lambda: _exported(model, example, names, folder, result),
        **{label: lambda peer=peer: _peer(peer, subject, folder) for label, peer in PEERS.items()},
        OURS: lambda: _ours(subject, exported, options.threads, result),
    }
    for label, step in steps.items():
        path = path_of(folder, label, options.threads)
        if path.is_file():
            continue
        start = time.perf_counter()
        try:
            content = step()
            path.write_bytes(content)
        except Exception as error:  # noqa: BLE001 - what a quantizer cannot do is a finding
            said = (str(error).strip().splitlines() or [""])[0]
            result["errors"][label] = f"{type(error).__name__}: {said[:200]}"
        result["seconds"][label] = time.perf_counter() - start
    return result


def _machine() -> str:
    """What of the CPU matters: its name and the instructions that kernels are chosen by."""
    if not _CPU.is_file():
        return platform.machine()
    fields = dict(line.split(":", 1) for line in _CPU.read_text().splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(named.get("flags", named.get("Features", "")).split())
    return f"{named.get('model name', platform.machine())} ({', '.join(f for f in _TELLING if f in flags)})"


def _call(example: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), dict(example)) if isinstance(example, dict) else ((example,), {})


def _exported(
    model: nn.Module, example: Batch, names: list[str], folder: Path, result: dict[str, Any]
) -> bytes:
    args, kwargs = _call(example)
    try:
        program = torch.onnx.export(
            model, args, kwargs=kwargs or None, input_names=names, dynamo=True, verbose=False
        )
        assert program is not None
        return program.model_proto.SerializeToString()
    except Exception:  # noqa: BLE001 - every layer of the exporter has errors of its own
        result["errors"]["exported"] = "torch.onnx.export fails: the peers read our lowering"
        return path_of(folder, FLOAT, 1).read_bytes()


def _peer(peer: Callable[..., bytes], subject: Subject, folder: Path) -> bytes:
    model = (folder / "exported.onnx").read_bytes()
    return peer(model, [feeds(model, subject.batch(1, seed=2 + index)) for index in range(SAMPLES)])


def _ours(subject: Subject, exported: Any, threads: int, result: dict[str, Any]) -> bytes:
    made = fxcompress.optimize(
        exported,
        quantize="int8",
        calibration=[subject.batch(1, seed=2 + index) for index in range(SAMPLES)],
        threads=threads,
    )
    result["winner"] = next((item.name for item in made.report.candidates if item.chosen), "")
    result["steps"] = {
        entry.name: round(entry.seconds, 2) for entry in made.report.passes if entry.seconds > LONG
    }
    content: bytes = made.onnx.SerializeToString()
    return content


def feeds(model: bytes, batch: Batch) -> dict[str, NDArray[Any]]:
    """A batch under the names of an ONNX file's inputs, which are in the order of the model's."""
    values = list(batch.values()) if isinstance(batch, dict) else [batch]
    names = [value.name for value in onnx.load_from_string(model).graph.input]
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def timed(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Time the files that load in one alternated run; those that do not are named with the reason."""
    files: dict[str, bytes] = {}
    result: dict[str, Any] = {"ms": {}, "ratios": {}, "slower": {}, "errors": {}, "error": {}}
    batch = subject.batch(1, seed=99)
    answers: dict[str, Any] = {}
    for label in LABELS:
        path = path_of(options.folder, label, options.threads)
        if not path.is_file():
            continue
        content = path.read_bytes()
        try:
            own = feeds(content, batch)
            answers[label] = next(iter(run(open_session(content), own).values()))
            files[label] = content
        except fxcompress.CompressError as error:
            result["errors"][label] = error.message[:200]
    own = feeds(files[FLOAT], batch)
    measured = compare(
        files,
        own,
        threads=options.threads,
        rounds=options.rounds,
        seconds=PATIENCE,
        clock=_CLOCKS[options.clock],
    )
    result["ms"] = measured.median_ms
    for label in files:
        result["error"][label] = _apart(answers[label], answers[FLOAT])
        if OURS in files and label != OURS:
            ratio = measured.ratio(OURS, label)
            result["ratios"][label] = [ratio.value, ratio.low, ratio.high]
            result["slower"][label] = ratio.low > SLOWER
    return result


def _apart(answer: NDArray[Any], float_answer: NDArray[Any]) -> float:
    """Norm of the difference from the float model's answer, as a share of the answer's spread."""
    spread = float(np.linalg.norm(float_answer - float_answer.mean())) or 1.0
    return float(np.linalg.norm(answer - float_answer)) / spread


def in_openvino(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Run one file in OpenVINO."""
    content = path_of(options.folder, options.label, options.threads).read_bytes()
    own = feeds(content, subject.batch(1, seed=99))
    return {"ms": openvino_ms(content, own, threads=options.threads)}


_STEPS: dict[str, Callable[[Subject, argparse.Namespace], dict[str, Any]]] = {
    "make": make,
    "time": timed,
    "openvino": in_openvino,
}

if __name__ == "__main__":
    main()

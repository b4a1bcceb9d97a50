"""What `optimize` returns: two programs, the plan, the ONNX model and the report; and how they are saved."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.lowering.write import save_model
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import QuantizationPlan
from fxcompress.report.report import Report
from fxcompress.runtime.session import open_session

FILES = ("model.onnx", "program.fxc", "plan.json", "report.json")
"""What `Result.save` writes."""


@dataclass(frozen=True)
class Plan:
    """What was decided: which channels stay, and in which precision each operator runs."""

    pruning: PruningPlan | None = None
    quantization: QuantizationPlan | None = None

    @property
    def kept(self) -> Mapping[str, Mapping[int, tuple[int, ...]]]:
        """By parameter name and dimension, the indices that stay, in the user's coordinates."""
        return {} if self.pruning is None else self.pruning.kept

    @property
    def precision(self) -> Mapping[str, str]:
        """By operator, "int8" or "float"; empty where the whole model is float."""
        return {} if self.quantization is None else self.quantization.precision

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "kept": {
                name: {str(dim): list(stay) for dim, stay in dims.items()} for name, dims in self.kept.items()
            },
            "precision": dict(self.precision),
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
        }

    def __str__(self) -> str:
        parts = [str(part) for part in (self.pruning, self.quantization) if part is not None]
        return "\n".join(parts) or "nothing pruned, nothing quantized"


@dataclass(frozen=True)
class Result:
    """The outcome of one `optimize` call.

    Attributes:
        program: the deployed program, which is what was lowered.
        trainable: pruned, before folding and Q/DQ; `.module` goes to an optimizer.
        plan: what was decided.
        onnx: the lowered model.
        report: what was measured, proven, changed and declined.
        threads: intra-operator threads that the latency was measured with.
    """

    program: Program
    trainable: Program
    plan: Plan
    onnx: onnx.ModelProto
    report: Report
    threads: int = 1

    def session(self, threads: int | None = None) -> ort.InferenceSession:
        """Return a ready onnxruntime session of the model."""
        return open_session(self.onnx, threads=self.threads if threads is None else threads)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.onnx`, `program.fxc`, `plan.json` and `report.json` into a folder, made where missing.

        Everything is written beside the folder's files first and moved when it is whole.

        Raises:
            InputError: the folder cannot be made or written; nothing half-written is left.
        """
        target = Path(folder)
        check_folder(target)
        made = [parent for parent in (target, *target.parents) if not parent.exists()]
        try:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as staging:
                self._write(Path(staging))
                for name in sorted(os.listdir(staging)):
                    os.replace(Path(staging, name), target / name)
        except BaseException as error:
            if made:
                shutil.rmtree(made[-1], ignore_errors=True)
            if isinstance(error, OSError):
                raise _unwritable(target, error) from error
            raise

    def _write(self, folder: Path) -> None:
        save_model(self.onnx, folder / "model.onnx")
        self.program.save(folder / "program.fxc")
        (folder / "plan.json").write_text(json.dumps(self.plan.to_dict(), indent=1), encoding="utf-8")
        report = json.dumps(self.report.to_dict(), indent=1, allow_nan=False)
        (folder / "report.json").write_text(report, encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Try whether `Result.save` can write to a folder, by writing to it or to what it would be made in.

    Raises:
        InputError: the folder cannot be made or written, or a folder has the name of a file to come.
    """
    blocked = [name for name in FILES if (folder / name).is_dir()]
    if blocked:
        raise InputError(f"{folder / blocked[0]} is a folder", hint=f"pass a folder without a {blocked[0]}")
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".saving-"):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write to {folder}: {error.strerror or error}",
        hint="pass a folder that you may write to, or one that can be made",
    )

"""Write an ONNX model so that a reader finds the old file, or the new one, and never half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx

from fxcompress.errors import InputError
from fxcompress.runtime.session import LARGE, tensor_bytes


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str], *, large: int = LARGE) -> None:
    """Write a model to `path`, atomically; above `large` bytes the tensors go to `<name>.data` beside it.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            if tensor_bytes(model) < large:
                staged = Path(folder, target.name)
                staged.write_bytes(model.SerializeToString())
            else:
                staged = _stage_external(model, Path(folder), target.name)
                os.replace(staged.with_name(f"{target.name}.data"), target.with_name(f"{target.name}.data"))
            os.replace(staged, target)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}",
            hint="choose a folder that exists and is writable",
        ) from error


def _stage_external(model: onnx.ModelProto, folder: Path, name: str) -> Path:
    """Write a model with external data; onnx empties the tensors of the message it saves, hence the copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    staged = folder / name
    onnx.save_model(
        copy, str(staged), save_as_external_data=True, location=f"{name}.data", size_threshold=1024
    )
    return staged

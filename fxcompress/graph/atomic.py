"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from fxcompress.errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and move it there; nothing half-written is ever left under the name.

    Raises InputError when the directory is missing or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="choose an existing directory that you may write to",
        ) from error

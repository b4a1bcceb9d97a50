"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fxcompress.errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and move it there; nothing half-written is ever left under the name.

    Raises InputError when the directory is missing or cannot be written.
    """
    if not path.name:
        raise InputError(f"{str(path)!r} is no name of a file", hint="add one: out/model.fxc")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            staged = Path(folder, path.name)  # apart for every writer, and of the umask's permissions
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="choose an existing directory that you may write to",
        ) from error

"""What the arguments of a command name: a model, a file, a function, calibration data."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fxcompress.errors import CompressError, InputError
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture

PROGRAM_SUFFIXES = (".fxc", ".pt2")
_WEIGHTS = "it holds weights or pickled objects, not a graph"
_NO_MODELS = {
    ".onnx": "ONNX is what comes out; what goes in is the PyTorch model",
    ".pt": _WEIGHTS,
    ".pth": _WEIGHTS,
    ".safetensors": _WEIGHTS,
}
"""Files that people may take for a model, and why they are none here."""

_DIMENSION = re.compile(r"(?P<input>[^:=]+):(?P<dim>-?\d+)=(?P<symbol>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Given:
    """A model as `optimize` takes it, and example inputs where the caller's function returned some."""

    model: Any
    example_inputs: Any = None


def given_model(spec: str, *, trust: bool) -> Given:
    """The model that MODEL names: a `.fxc` or `.pt2` file, or `package.module:callable`.

    Raises:
        click.BadParameter: neither a known kind of file nor `module:callable`.
        CompressError: the file or the function does not give a model.
    """
    if is_program_file(spec):
        return Given(program_file(Path(spec), trust=trust))
    if Path(spec).suffix.lower() in _NO_MODELS:
        raise InputError(
            f"{spec} cannot be compressed: {_NO_MODELS[Path(spec).suffix.lower()]}",
            hint="pass a .pt2 file (torch.export.save), a .fxc file, or package.module:callable returning "
            "the PyTorch model",
        )
    found = call(function(spec, "MODEL"), spec)
    if isinstance(found, tuple):
        if len(found) != 2:
            raise InputError(
                f"{spec} returned {len(found)} values", hint="return the model or (model, example_inputs)"
            )
        return Given(*found)
    return Given(found)


def dynamic_shapes(items: Sequence[str]) -> dict[str, dict[int, str]] | None:
    """The dynamic dimensions that `input_ids:1=sequence` and its like name; None for none.

    Raises:
        click.BadParameter: an item of another form, or two for one dimension.
    """
    shapes: dict[str, dict[int, str]] = {}
    for item in items:
        match = _DIMENSION.fullmatch(item)
        if match is None:
            raise click.BadParameter(f"{item!r} is not INPUT:DIM=NAME", param_hint="--dynamic")
        dims = shapes.setdefault(match["input"], {})
        if int(match["dim"]) in dims:
            raise click.BadParameter(f"{item!r} names a dimension again", param_hint="--dynamic")
        dims[int(match["dim"])] = match["symbol"]
    return shapes or None


def is_program_file(spec: str) -> bool:
    """Whether a path looks like a captured program."""
    return Path(spec).suffix.lower() in PROGRAM_SUFFIXES


def program_file(path: Path, *, trust: bool) -> Any:
    """The program in a `.fxc` or `.pt2` file.

    Raises:
        InputError: no such file, or not what its name says.
        UnsafeFile: it carries code, and `trust` is not set.
    """
    existing(path, "check the path; a model may also be given as package.module:callable")
    return load(path) if path.suffix.lower() == ".fxc" else capture(path, trust=trust)


def existing(path: Path, hint: str = "check the path") -> Path:
    """The path, if a file is there."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", hint=hint)
    return path


def function(spec: str, parameter: str) -> Any:
    """The object that `package.module:name` names; the current directory is importable.

    Raises:
        click.BadParameter: the spec has no colon.
        InputError: no such module or name, or the module fails to import.
    """
    name, colon, attribute = spec.partition(":")
    if not colon or not name or not attribute:
        raise click.BadParameter(
            f"{spec!r} is neither a .pt2 or .fxc file nor of the form package.module:callable",
            param_hint=parameter,
        )
    found: Any = _module(name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{name} has no {attribute!r}", hint="write package.module:callable")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{spec} is a {type(found).__name__}, not a callable", hint="name a function that returns it"
        )
    return found


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise _users(error, f"importing {name}") from error
        raise InputError(
            f"no module named {error.name!r}",
            hint="run from the folder that holds it, or install its package",
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise _users(error, f"importing {name}") from error


def call(made: Any, spec: str, *args: Any) -> Any:
    """Call the user's function; what it raises becomes a typed error with its line."""
    try:
        return made(*args)
    except CompressError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise _users(error, f"calling {spec}") from error


def _users(error: Exception, doing: str) -> InputError:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    source = f"{Path(last.filename).name}:{last.lineno}: {last.line}" if last is not None else None
    return InputError(f"{doing} raised {type(error).__name__}: {error}", source=source)


def metric(spec: str) -> Callable[[Any], Any]:
    """The function that `--evaluate` names; what it raises becomes a typed error with its line."""
    return partial(call, function(spec, "--evaluate"), spec)


UNNAMED = "arr_0"
"""What `np.savez(path, array)` calls its one array."""


@dataclass(frozen=True)
class Arrays:
    """A `.npz` file as batches: keys are input names, the first dimension counts samples; iterable again.

    One array without a name is the one input of the model.
    """

    arrays: dict[str, NDArray[Any]]
    batch: int

    def __iter__(self) -> Iterator[Any]:
        samples = min(len(array) for array in self.arrays.values())
        for start in range(0, samples, self.batch):
            batch = {name: array[start : start + self.batch] for name, array in self.arrays.items()}
            yield batch[UNNAMED] if list(batch) == [UNNAMED] else batch


@dataclass(frozen=True)
class Called:
    """Batches of a function that returns an iterator: it is called again for every reading."""

    function: Any
    spec: str

    def __iter__(self) -> Iterator[Any]:
        return iter(call(self.function, self.spec))


def calibration(spec: str, batch: int) -> Any:
    """Calibration batches from a `.npz` file or from `package.module:callable`, which returns an iterable.

    A callable that returns an iterator, such as a generator function, is called again for every reading.

    Raises:
        InputError: the file is missing, not a `.npz`, holds pickled objects, or its arrays differ in length.
    """
    if Path(spec).suffix.lower() != ".npz":
        made = function(spec, "--calibration")
        batches = call(made, spec)
        return Called(made, spec) if isinstance(batches, Iterator) else batches
    arrays = npz(Path(spec))
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"the arrays of {spec} have different lengths: {lengths}",
            hint="the first dimension of every array counts samples",
        )
    if not lengths or not max(lengths.values()):
        raise InputError(
            f"{spec} holds no sample", hint="save one array per input, such as np.savez(path, x=images)"
        )
    return Arrays(arrays, batch)


_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    TypeError,  # a `.npy`, which is no context manager
    RuntimeError,  # "encrypted", and as NotImplementedError "patched data"
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy, zipfile and zlib raise on a file that is no `.npz` or is damaged."""


def npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` file; objects that would need unpickling are refused."""
    existing(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _DAMAGED as error:
        raise InputError(
            f"{path} is not a .npz file of plain arrays: {error}",
            hint="write it with np.savez(path, input_name=array)",
        ) from error

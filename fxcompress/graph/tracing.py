"""From a module to an `ExportedProgram`: `torch.export`, with its failures explained."""

from __future__ import annotations

import linecache
import logging
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, CompressError, InputError
from fxcompress.graph.dynamic import Dynamic
from fxcompress.graph.signature import Example

_TORCH = f"{Path(torch.__file__).parent}/"
_HERE = f"{Path(__file__).parent}/"
_DATA_DEPENDENT = (
    "the graph must not depend on values: replace Python `if`, `while`, `int(...)` and `.item()` on tensors by "
    "`torch.where`, masks or fixed sizes"
)


def call(model: nn.Module, example: Example) -> Any:
    """The model's own result on an example, leaving the model as it was.

    Raises InputError when the model itself fails on these inputs.
    """
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            return torch.func.functional_call(model, state, _clone(example.args), _clone(example.kwargs))
    except CompressError:
        raise
    except Exception as error:
        raise InputError(
            f"the model fails on the example inputs ({describe(example)}): {first_line(error)}",
            source=user_line(error),
            hint="call the model with these inputs first; example_inputs may be a tensor, a tuple or a dict",
        ) from error


def _clone(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.detach().clone(), tree)


def export(model: nn.Module, example: Example, dynamic: Dynamic) -> tuple[ExportedProgram, Dynamic, list[str]]:
    """Export with what is dynamic, else with a static batch.

    Returns the exported program, what is dynamic in it, and notes. Raises CaptureError.
    """
    try:
        return _export(model, example, dynamic), dynamic, []
    except Exception as error:
        static = dynamic.without_batch()
        if static.symbols == dynamic.symbols:
            raise _explain(error, dynamic) from error
        refusal = first_line(error)
    try:
        exported = _export(model, example, static)
    except Exception as error:
        raise _explain(error, static) from error
    size = next(leaf.shape[0] for leaf in pytree.tree_leaves((example.args, example.kwargs)))
    note = f"the batch is fixed at {size}: the model does not export with a dynamic batch ({refusal})"
    return exported, static, [note]


def _export(model: nn.Module, example: Example, dynamic: Dynamic) -> ExportedProgram:
    shapes = dynamic.for_export(model, example)
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                model, _clone(example.args), _clone(example.kwargs), dynamic_shapes=shapes, strict=False
            )
    finally:
        logging.disable(level)


def _explain(error: Exception, dynamic: Dynamic) -> CaptureError:
    kinds = {type(cause).__name__ for cause in _chain(error)}
    message = f"the model cannot be captured as a graph: {first_line(error)}"
    if any("DataDependent" in kind for kind in kinds) or "data-dependent" in str(error).lower():
        message = f"the model's control flow depends on data: {first_line(error)}"
        return CaptureError(message, source=user_line(error), hint=_DATA_DEPENDENT)
    if dynamic.symbols:
        asked = ", ".join(sorted(dynamic.symbols))
        message = f"the model does not export with dynamic {asked}: {first_line(error)}"
        return CaptureError(message, source=user_line(error), hint="leave these dimensions static, or bound them")
    return CaptureError(message, source=user_line(error), hint="see whether torch.export.export(model, ...) works")


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def user_line(error: BaseException) -> str | None:
    """The innermost line of the user's code in an exception's traceback, as `file.py:12: code`."""
    for cause in reversed(_chain(error)):
        frames = [
            frame for frame in traceback.extract_tb(cause.__traceback__)
            if not frame.filename.startswith((_TORCH, _HERE, "<"))
        ]
        for frame in reversed(frames):
            if frame.name != "capture":
                code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
                return f"{Path(frame.filename).name}:{frame.lineno}: {code}"
    return None


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, at most 300 characters."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()[:300]
    return type(error).__name__


def describe(example: Example) -> str:
    """`x float32[2, 3, 8, 8]`-like description of an example's leaves."""
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    return ", ".join(
        f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in leaves
    )

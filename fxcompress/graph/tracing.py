"""From a module to an `ExportedProgram`: `torch.export`, with its failures explained."""

from __future__ import annotations

import contextlib
import inspect
import io
import linecache
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, CompressError, InputError
from fxcompress.graph import walk
from fxcompress.graph.dynamic import Dynamic
from fxcompress.graph.signature import Example

_TORCH = f"{Path(torch.__file__).parent}/"
_HERE = f"{Path(__file__).parent}/"
_DATA_DEPENDENT = (
    "the graph must not depend on values: replace Python `if`, `while`, `int(...)` and `.item()` on tensors "
    "by `torch.where`, masks or fixed sizes"
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


def export(model: nn.Module, example: Example, dynamic: Dynamic) -> ExportedProgram:
    """Export a model, quietly; raises CaptureError with the user's line and what to do."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), _keywords_by_name(model, example):
            warnings.simplefilter("ignore")
            shapes = dynamic.for_export(model, example)
            return torch.export.export(
                model, _clone(example.args), _clone(example.kwargs), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise _explain(error, dynamic) from error
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _keywords_by_name(model: nn.Module, example: Example) -> Iterator[None]:
    """For a while, `forward(**inputs)` has a parameter for each keyword of the example.

    `torch.export` (2.13) looks up the dynamic dimensions of what went into `**inputs` in two ways that do not
    agree.
    """
    signature = inspect.signature(model.forward)
    listed = list(signature.parameters.values())
    names = [name for name in example.kwargs if name not in signature.parameters]
    if not names or listed[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        yield
        return
    original, shadowed = model.forward, model.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    spelled = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    forward.__signature__ = signature.replace(parameters=[*listed[:-1], *spelled])  # type: ignore[attr-defined]
    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        model.__dict__.pop("forward")
        if shadowed is not None:
            model.__dict__["forward"] = shadowed


def confirmed(exported: ExportedProgram, dynamic: Dynamic) -> tuple[Dynamic, list[str]]:
    """What of the wanted dynamic dimensions the exported graph really has; notes about the others.

    `Dim.AUTO` asks torch to decide; everything else is dynamic or the export has failed.
    """
    inputs = set(exported.graph_signature.user_inputs)
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    users = [node for node in nodes if node.name in inputs or node.name in _constants(exported)]
    names: list[dict[int, str]] = []
    notes: list[str] = []
    for node, wanted in zip(users, dynamic.names, strict=True):
        val = node.meta.get("val")
        kept = {dim: name for dim, name in wanted.items() if walk.varies(val.shape[dim])}
        lost = sorted(set(wanted.values()) - set(kept.values()))
        notes.extend(f"{name} of {node.name} is fixed: the model allows one size" for name in lost)
        names.append(kept)
    return replace(dynamic, names=tuple(names)), notes


def _constants(exported: ExportedProgram) -> set[str]:
    """Placeholders of inputs that are no tensors."""
    return {
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if isinstance(spec.arg, ConstantArgument)
    }


def _explain(error: Exception, dynamic: Dynamic) -> CaptureError:
    kinds = {type(cause).__name__ for cause in _chain(error)}
    message = f"the model cannot be captured as a graph: {first_line(error)}"
    if "modified inplace" in str(error):
        return CaptureError(
            message, source=user_line(error), hint="write this part without in-place operations"
        )
    if any("DataDependent" in kind for kind in kinds) or "data-dependent" in str(error).lower():
        message = f"the model's control flow depends on data: {first_line(error)}"
        return CaptureError(message, source=user_line(error), hint=_DATA_DEPENDENT)
    if dynamic.symbols:
        asked = ", ".join(sorted(dynamic.symbols))
        message = f"the model does not export with dynamic {asked}: {first_line(error)}"
        return CaptureError(
            message, source=user_line(error), hint="leave these dimensions static, or bound them"
        )
    return CaptureError(
        message, source=user_line(error), hint="see whether torch.export.export(model, ...) works"
    )


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
            frame
            for frame in traceback.extract_tb(cause.__traceback__)
            if not frame.filename.startswith((_TORCH, _HERE, "<"))
        ]
        for frame in reversed(frames):
            if frame.name != "capture":
                code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
                return f"{Path(frame.filename).name}:{frame.lineno}: {code}"
    return None


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, at most 300 characters.

    For violated constraints that is the first item of their list, not its heading.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    items = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    if lines and lines[0].startswith("Constraints violated") and items:
        return items[0][:300]
    return lines[0][:300] if lines else type(error).__name__


def describe(example: Example) -> str:
    """`x float32[2, 3, 8, 8]`-like description of an example's leaves."""
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    return ", ".join(
        f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
        if isinstance(leaf, torch.Tensor)
        else repr(leaf)
        for leaf in leaves
    )

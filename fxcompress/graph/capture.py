"""Capture: a module, an exported program or a `.pt2` file becomes a `Program` in canonical form."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, CompressError, IllFormed, InputError
from fxcompress.graph import agreement, dynamic, tracing, walk
from fxcompress.graph.canonical import canonical
from fxcompress.graph.fake_quantization import frozen, notes_on_observers
from fxcompress.graph.inputs import infer_example, normalize
from fxcompress.graph.intake import HOW, settle_masks, unwrapped
from fxcompress.graph.program import Example, Program
from fxcompress.graph.python_modes import notes_on_modes, refuse_training
from fxcompress.graph.quantizers import settle_quantizers
from fxcompress.graph.screen import screen_pt2
from fxcompress.graph.wellformed import well_formed

_RESULTS = (torch.Tensor, int, float, bool, str, type(None))


def capture(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> Program:
    """Turn a model into a program; the model itself is left as it is.

    Wrappers (`torch.compile`, data parallel, `AveragedModel`) are looked through: parameters have the names
    of the module inside, without `module.` or `_orig_mod.`.

    Args:
        model: a module in evaluation mode, an exported program, or the path of a `.pt2` file.
        example_inputs: a tensor, a tuple of positional or a dict of keyword inputs; inferred when absent.
        dynamic_shapes: dimensions beside the batch that vary, as `torch.export` takes them or as
            `{"input_ids": {0: "batch", 1: "sequence"}}`.
        trust: load a `.pt2` file without screening it; such a file can run code.

    Raises:
        InputError: the model is in training mode, on another device or without its weights, has packed
            integer weights, or fails on the example inputs, or the file is no `.pt2`.
        CaptureError: the model cannot be a graph, for example because its control flow depends on data.
        UnsafeFile: the `.pt2` file could run code.
    """
    if isinstance(model, str | os.PathLike):
        model = _load(Path(model), trust)
    if isinstance(model, ExportedProgram):
        if dynamic_shapes is not None:
            raise InputError(
                "an exported program has the dynamic dimensions that it was exported with",
                hint="pass dynamic_shapes to torch.export.export, or the module instead of the program",
            )
        return _from_exported(model, example_inputs)
    model = unwrapped(model)
    notes = notes_on_observers(model)
    model = frozen(model)
    refuse_training(model)
    if example_inputs is not None:
        example = normalize(example_inputs)
    else:
        example, note = infer_example(model)
        notes.append(note)
    program = _from_module(model, _keywords(model, example), dynamic_shapes)
    program.notes.extend(notes)
    return program


def _from_module(model: nn.Module, example: Example, dynamic_shapes: Any) -> Program:
    example, notes = _without_cache(model, example, tracing.call(model, example))
    wanted = dynamic.resolve(model, example, dynamic_shapes)
    try:
        program = _trace(model, dynamic.grow(example, wanted), wanted)
    except (CaptureError, IllFormed, InputError) as refusal:
        static = wanted.without_batch()
        if static.symbols == wanted.symbols:
            raise
        program = _trace(model, example, static)
        size = next(leaf.shape[0] for leaf in program.flat_example() if leaf.ndim)
        program.notes.append(f"the batch is fixed at {size}; a dynamic one failed: {refusal.message}")
    program.notes.extend(
        [*notes, *notes_on_modes(model), *settle_masks(program), *settle_quantizers(program)]
    )
    return program


def _trace(model: nn.Module, example: Example, shapes: dynamic.Dynamic) -> Program:
    exported = tracing.export(model, example, shapes)
    shapes, notes = tracing.confirmed(exported, shapes)
    program = canonical(exported, example, shapes.names, notes)
    well_formed(program)
    agreement.check(lambda variant: tracing.call(model, variant), program, example, shapes)
    return program


def _without_cache(model: nn.Module, example: Example, result: Any) -> tuple[Example, list[str]]:
    """The example with `use_cache=False` where the model returns a cache that no graph can return."""
    odd = {type(leaf).__name__ for leaf in pytree.tree_leaves(result) if not isinstance(leaf, _RESULTS)}
    if not odd:
        return example, []
    if "use_cache" in inspect.signature(model.forward).parameters and "use_cache" not in example.kwargs:
        example = Example(example.args, {**example.kwargs, "use_cache": False})
        return _without_cache(model, example, tracing.call(model, example))
    raise CaptureError(
        f"the model returns {', '.join(sorted(odd))}, which holds no tensors that a graph can return",
        hint="return tensors, or tuples, lists and dicts of tensors",
    )


def _from_exported(exported: ExportedProgram, example_inputs: Any) -> Program:
    if example_inputs is not None:
        example = normalize(example_inputs)
    elif exported.example_inputs is not None:
        example = Example(tuple(exported.example_inputs[0]), dict(exported.example_inputs[1]))
    else:
        raise InputError("the exported program carries no example inputs", hint="pass example_inputs")
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    names = _symbols(exported, len(leaves))
    fixed = "the batch is as the exported program has it: fixed"
    notes = [] if any(0 in dims for dims in names) else [fixed]
    program = canonical(exported, example, names, notes)
    well_formed(program)
    module = exported.module(check_guards=False)
    static = dynamic.Dynamic(tuple({} for _ in leaves))
    agreement.check(lambda variant: _run(module, variant), program, example, static)
    program.notes.extend(settle_quantizers(program))
    return program


def _run(module: nn.Module, example: Example) -> Any:
    with torch.no_grad():
        return module(*example.args, **example.kwargs)


def _symbols(exported: ExportedProgram, count: int) -> list[dict[int, str]]:
    """The symbols of an exported program; the first one in a first dimension is called `batch`."""
    found: list[dict[int, str]] = []
    names: dict[str, str] = {}
    inputs = set(exported.graph_signature.user_inputs)
    for node in exported.graph.nodes:
        if node.op != "placeholder" or node.name not in inputs:
            continue
        val = node.meta.get("val")
        dims: dict[int, str] = {}
        sizes: tuple[int | torch.SymInt, ...] = tuple(val.shape) if isinstance(val, torch.Tensor) else ()
        for dim, size in enumerate(sizes):
            if walk.varies(size):
                default = dynamic.BATCH if dim == 0 and dynamic.BATCH not in names.values() else str(size)
                dims[dim] = names.setdefault(str(size), default)
        found.append(dims)
    return found if len(found) == count else [{} for _ in range(count)]


def _load(path: Path, trust: bool) -> ExportedProgram:
    if not path.is_file():
        raise InputError(f"there is no file {path}", hint=HOW)
    if not trust:
        screen_pt2(path)
    try:
        with _without_log():  # torch logs the traceback of what it raises
            return torch.export.load(path)
    except CompressError:
        raise
    except Exception as error:
        raise InputError(
            f"{path.name} is not a .pt2 file that this torch can read: {tracing.first_line(error)}",
            hint="write it with torch.export.save(torch.export.export(model, args), path)",
        ) from error


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _keywords(model: nn.Module, example: Example) -> Example:
    """The example with positional inputs behind the first that is no tensor passed by name."""
    fixed = [i for i, arg in enumerate(example.args) if not _has_tensor(arg)]
    if not fixed:
        return example
    parameters = list(inspect.signature(model.forward).parameters.values())
    kinds = {parameter.kind for parameter in parameters[: len(example.args)]}
    if kinds - {inspect.Parameter.POSITIONAL_OR_KEYWORD} or len(parameters) < len(example.args):
        return example
    moved = {parameters[i].name: example.args[i] for i in range(fixed[0], len(example.args))}
    return Example(example.args[: fixed[0]], {**moved, **example.kwargs})


def _has_tensor(tree: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(tree))

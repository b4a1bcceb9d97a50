"""Capture: a module, an exported program or a `.pt2` file becomes a `Program` in canonical form."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.errors import CompressError, InputError
from fxcompress.graph import dynamic, tracing
from fxcompress.graph.canonical import canonical
from fxcompress.graph.inputs import infer_example, normalize
from fxcompress.graph.program import Example, Program
from fxcompress.graph.screen import screen_pt2
from fxcompress.graph.wellformed import well_formed

_HOW = "pass a torch.nn.Module, a torch.export.ExportedProgram or the path of a .pt2 file"


def capture(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> Program:
    """Turn a model into a program; the model itself is left as it is.

    Args:
        model: a module in evaluation mode, an exported program, or the path of a `.pt2` file.
        example_inputs: a tensor, a tuple of positional or a dict of keyword inputs; inferred when absent.
        dynamic_shapes: dimensions beside the batch that vary, as `torch.export` takes them or as
            `{"input_ids": {0: "batch", 1: "sequence"}}`.
        trust: load a `.pt2` file without screening it; such a file can run code.

    Raises:
        InputError: the model is in training mode, or fails on the example inputs, or the file is no `.pt2`.
        CaptureError: the model cannot be a graph, for example because its control flow depends on data.
        UnsafeFile: the `.pt2` file could run code.
    """
    if isinstance(model, str | os.PathLike):
        model = _load(Path(model), trust)
    if isinstance(model, ExportedProgram):
        return _from_exported(model, example_inputs)
    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(model).__name__} is not a model", hint=_HOW)
    _refuse_training(model)
    example = normalize(example_inputs) if example_inputs is not None else infer_example(model)
    return _from_module(model, _keywords(model, example), dynamic_shapes)


def _from_module(model: nn.Module, example: Example, dynamic_shapes: Any) -> Program:
    tracing.call(model, example)
    shapes = dynamic.resolve(model, example, dynamic_shapes)
    grown = dynamic.grow(example, shapes)
    exported, shapes, notes = tracing.export(model, grown, shapes)
    program = canonical(exported, grown, [dict(dims) for dims in shapes.names], notes)
    well_formed(program)
    return program


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
    return program


def _symbols(exported: ExportedProgram, count: int) -> list[dict[int, str]]:
    """What is dynamic in an exported program: its own symbols, `batch` for the first input's first dimension."""
    found: list[dict[int, str]] = []
    names: dict[str, str] = {}
    inputs = set(exported.graph_signature.user_inputs)
    for node in exported.graph.nodes:
        if node.op != "placeholder" or node.name not in inputs:
            continue
        val = node.meta.get("val")
        dims: dict[int, str] = {}
        for dim, size in enumerate(val.shape if isinstance(val, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                default = dynamic.BATCH if dim == 0 and dynamic.BATCH not in names.values() else str(size)
                dims[dim] = names.setdefault(str(size), default)
        found.append(dims)
    return found if len(found) == count else [{} for _ in range(count)]


def _load(path: Path, trust: bool) -> ExportedProgram:
    if not path.is_file():
        raise InputError(f"there is no file {path}", hint=_HOW)
    if not trust:
        screen_pt2(path)
    try:
        return torch.export.load(path)
    except CompressError:
        raise
    except Exception as error:
        raise InputError(
            f"{path.name} is not a .pt2 file that this torch can read: {tracing.first_line(error)}",
            hint="write it with torch.export.save(torch.export.export(model, args), path)",
        ) from error


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


def _refuse_training(model: nn.Module) -> None:
    """Refuse a module that would compute something else in evaluation mode."""
    for name, module in model.named_modules():
        if module.training and _reads_mode(module):
            raise InputError(
                f"the model is in training mode ({name or 'the model'}: {type(module).__name__})",
                hint="call model.eval() before capturing; program.train() brings training mode back",
            )


def _reads_mode(module: nn.Module) -> bool:
    """Whether a module's class looks at `self.training`, except a dropout that drops nothing."""
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0:
        return False
    classes = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    functions = [value for kind in classes for value in vars(kind).values()]
    return any("training" in names for value in functions for names in _names(getattr(value, "__code__", None)))


def _names(code: CodeType | None) -> list[tuple[str, ...]]:
    if code is None:
        return []
    inner = [names for const in code.co_consts if isinstance(const, CodeType) for names in _names(const)]
    return [code.co_names, *inner]

"""The `.fxc` archive: a program as data that can be opened without trust.

A `.fxc` file is a zip of exactly three stored entries: `program.json` (signature, notes, history, a table of
tensor names and the graph, see `codec`), `tensors.safetensors` (every distinct tensor once, under its first
qualified name) and `example.safetensors` (the example inputs by input name). Operators are named, and only
those of the allow-list in `operators` load. Opening a file never unpickles, imports or evaluates anything
from it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import fx, nn

from fxcompress.errors import CompressError, InputError, UnsafeFile
from fxcompress.graph.codec import (
    Damaged,
    Frame,
    checked,
    decode_node,
    decode_spec,
    found,
    identifier,
    pair,
    qualified,
)
from fxcompress.graph.origins import Origin, Origins
from fxcompress.graph.program import Program
from fxcompress.graph.signature import Example, Signature
from fxcompress.graph.wellformed import well_formed
from fxcompress.graph.writing import EXAMPLE_ENTRY, FORMAT, GRAPH_ENTRY, TENSORS_ENTRY, VERSION, save

__all__ = ["load", "save"]

_ENTRIES = frozenset((GRAPH_ENTRY, TENSORS_ENTRY, EXAMPLE_ENTRY))
_HINT = "write one with program.save(path)"

# What Python, torch and safetensors raise on data that is not what it says it is.
_MALFORMED = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, RecursionError,
    RuntimeError, TypeError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError, AssertionError,
)  # fmt: skip


def load(path: str | Path) -> Program:
    """The program that `save` wrote to `path`, equal to it in every tensor, name and printed line.

    Needs neither the model's class nor its library. Raises InputError for a file that is missing, damaged or
    no `.fxc`, and UnsafeFile for one that carries anything but data.
    """
    path = Path(path)
    try:
        entries = _read(path)
        document = checked(json.loads(entries[GRAPH_ENTRY]), dict)
        _check_version(document)
        return _rebuild(document, entries)
    except CompressError as error:
        error.note(f"while opening {path.name}")
        raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}", hint="check the path"
        ) from error
    except Damaged as error:
        raise InputError(f"{path.name} is damaged: {error}", hint=_HINT) from error
    except _MALFORMED as error:
        raise InputError(f"{path.name} is not a .fxc file, or it is damaged", hint=_HINT) from error


def _read(path: Path) -> dict[str, bytes]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if GRAPH_ENTRY not in names:
            raise InputError(f"{path.name} is not a .fxc file", hint=_HINT)
        if extra := sorted(set(names) - _ENTRIES):
            raise UnsafeFile(
                f"{path.name} carries {extra[0][:80]!r}, which is no part of a program", hint=_HINT
            )
        if len(names) != len(_ENTRIES) or any(info.compress_type or info.flag_bits & 1 for info in infos):
            raise Damaged("its entries are not three plain ones")
        if sum(info.file_size for info in infos) > size:
            raise Damaged("its entries claim more bytes than the file has")
        return {name: archive.read(name) for name in names}


def _check_version(document: dict[str, Any]) -> None:
    if document.get("format") != FORMAT:
        raise Damaged("it does not say that it is a program")
    if document.get("version") != VERSION:
        raise InputError(
            f"the file has format version {document.get('version')}; this fxcompress reads version {VERSION}",
            hint="open it with the fxcompress that wrote it",
        )


def _rebuild(document: dict[str, Any], entries: dict[str, bytes]) -> Program:
    signature = _signature(document)
    stored = safetensors.torch.load(entries[TENSORS_ENTRY])
    inputs = safetensors.torch.load(entries[EXAMPLE_ENTRY])
    flat = [found(inputs, name) for name in signature.inputs]
    args, kwargs = torch.utils._pytree.tree_unflatten(flat, signature.in_spec)
    tensors = _tensors(checked(document.get("tensors"), list), stored)
    graph = _graph(document, signature, tensors)
    program = Program.build(graph, tensors, signature, Example(args, kwargs))
    program.notes.extend(_texts(document, "notes"))
    program.history.extend(_texts(document, "history"))
    if "origins" in document:  # files of the first release have none
        program.origins = _origins(document, tensors)
    if checked(document.get("training"), bool):
        program.train()
    well_formed(program)
    return program


def _texts(document: dict[str, Any], key: str) -> list[str]:
    return [checked(item, str) for item in checked(document.get(key), list)]


def _origins(document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Origins:
    made: dict[str, Origin] = {}
    for record in checked(document["origins"], list):
        name, user, dim, positions = checked(record, list)
        places = tuple(checked(place, int) for place in checked(positions, list))
        shape = found(tensors, checked(name, str)).shape
        if dim is not None and not (0 <= checked(dim, int) < len(shape) and shape[dim] == len(set(places))):
            raise Damaged(f"the origin of the tensor {name[:40]!r} does not fit it")
        made[name] = Origin(qualified(user), dim, places)
    return Origins(tuple(_texts(document, "rewrites")), made)


def _signature(document: dict[str, Any]) -> Signature:
    inputs = tuple(identifier(name) for name in _texts(document, "inputs"))
    dynamic: dict[str, dict[int, str]] = {}
    for name, dims in map(pair, checked(document.get("dynamic"), list)):
        pairs = [pair(entry) for entry in checked(dims, list)]
        dynamic[identifier(name)] = {checked(dim, int): checked(symbol, str) for dim, symbol in pairs}
    signature = Signature(
        inputs=inputs,
        outputs=tuple(_texts(document, "outputs")),
        dynamic=dynamic,
        in_spec=decode_spec(document.get("in_spec")),
        out_spec=decode_spec(document.get("out_spec")),
    )
    args, kwargs = torch.utils._pytree.tree_unflatten([0] * len(inputs), signature.in_spec)
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise Damaged("its inputs are not positional and keyword inputs")
    for name in kwargs:
        identifier(name)  # becomes an argument name in generated source
    if len(signature.outputs) != signature.out_spec.num_leaves or not set(dynamic) <= set(inputs):
        raise Damaged("its signature contradicts itself")
    return signature


def _tensors(records: list[Any], stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters and buffers by qualified name; tied names share one object."""
    tensors: dict[str, torch.Tensor] = {}
    for record in records:
        record = checked(record, dict)
        name = qualified(record.get("name"))
        tied = record.get("tied")
        tensor = found(tensors, tied).detach() if tied is not None else _strided(found(stored, name), record)
        if name in tensors:
            raise Damaged(f"the tensor {name!r} occurs twice")
        if checked(record.get("parameter"), bool):
            requires_grad = checked(record.get("requires_grad"), bool)
            shared = tensors[tied] if tied is not None else None
            tensor = shared if isinstance(shared, nn.Parameter) else nn.Parameter(tensor, requires_grad)
        tensors[name] = tensor
    return tensors


def _strided(tensor: torch.Tensor, record: dict[str, Any]) -> torch.Tensor:
    """A copy in memory of its own, in the stored order of elements."""
    stride = record.get("stride")
    if stride is None:
        return tensor.clone()
    strides = [checked(step, int) for step in checked(stride, list)]
    layout = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device="meta")
    if not torch.ops.aten.is_non_overlapping_and_dense.default(layout):
        raise Damaged("a tensor with impossible strides")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _graph(document: dict[str, Any], signature: Signature, tensors: dict[str, torch.Tensor]) -> fx.Graph:
    frames = [_frame(entry) for entry in checked(document.get("frames"), list)]
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for record in checked(document.get("nodes"), list):
        node = decode_node(record, graph, nodes, frames)
        if node.op == "get_attr" and node.target not in tensors:
            raise Damaged(f"the tensor {str(node.target)[:40]!r} is not stored")
        nodes[node.name] = node
    ops = [node.op for node in graph.nodes]
    if ops.count("output") != 1 or ops[-1] != "output":
        raise Damaged("its graph does not end with its one output")
    if tuple(node.name for node in graph.nodes if node.op == "placeholder") != signature.inputs:
        raise Damaged("its inputs are not those of its graph")
    graph.lint()
    return graph


def _frame(entry: Any) -> Frame:
    file, line, function, code = checked(entry, list)
    texts = [checked(text, str) for text in (file, function, code)]
    if any('"' in texts[0] or "\n" in text or "\r" in text for text in texts):
        raise Damaged("a source line that is none")
    return texts[0], checked(line, int), texts[1], texts[2]

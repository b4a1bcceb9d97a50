"""A graph as JSON and back: arguments, structures and nodes, written so that they read back exactly.

Plain JSON stands for itself (null, booleans, integers, finite floats, text, lists); everything else is an
object with one key that says what it is: `{"node": "relu"}`, `{"tuple": [...]}`, `{"dtype": "float32"}`.
Reading builds values from these few forms only; nothing in a file is evaluated, imported or looked up by
attribute.
"""

from __future__ import annotations

import keyword
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxcompress.errors import IllFormed, NotSupported
from fxcompress.graph.operators import name_of, resolve

_Kind = TypeVar("_Kind")
Frame = tuple[str, int, str, str]
"""File name, line, function and code of a source line."""

_LIBRARY = f"{Path(torch.__file__).parent}/"
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_UNQUOTED = re.compile(r"[^\"'`\\.]+")
_FRAME = re.compile(
    r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<function>[^\n]*)\n(?P<code>(?!\s*File ")[^\n]*)?'
)

DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
_LAYOUTS = {"strided": torch.strided, "sparse_coo": torch.sparse_coo}
_MEMORY_FORMATS = {
    str(value).removeprefix("torch."): value
    for value in (
        torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d
    )
}  # fmt: skip
_DEVICE = re.compile(r"[a-z]+(:[0-9]+)?", re.ASCII)
_LEAF = "*"


class Damaged(Exception):
    """A stored program that does not follow the format; `archive.load` turns it into an InputError."""


def encode_argument(value: Any) -> Any:
    """An argument of a node as JSON; raises IllFormed for what a canonical graph does not hold."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [encode_argument(item) for item in value]}
    if isinstance(value, list):
        return [encode_argument(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[key, encode_argument(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode_argument(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, complex):
        return {"complex": [encode_argument(value.real), encode_argument(value.imag)]}
    for kind in (torch.dtype, torch.device, torch.layout, torch.memory_format):
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    raise IllFormed(f"a {type(value).__name__} cannot be an argument in a stored program")


def decode_argument(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The argument that `encode_argument` wrote; `nodes` are the nodes that come before."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [decode_argument(item, nodes) for item in value]
    kind, content = single(value)
    if kind == "node":
        return found(nodes, content)
    if kind in _PLAIN:
        return _PLAIN[kind](content)
    items = [decode_argument(item, nodes) for item in checked(content, list)] if kind != "dict" else []
    if kind == "tuple":
        return tuple(items)
    if kind == "slice" and len(items) == 3:
        return slice(*items)
    if kind == "complex" and len(items) == 2:
        return complex(*items)
    if kind == "dict":
        pairs = [pair(item) for item in checked(content, list)]
        return {checked(key, str): decode_argument(item, nodes) for key, item in pairs}
    raise Damaged(f"an argument of the unknown kind {str(kind)[:40]!r}")


def _float(content: Any) -> float:
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[checked(content, str)]


def _device(content: Any) -> torch.device:
    if not _DEVICE.fullmatch(checked(content, str)):
        raise Damaged("a device that is none")
    return torch.device(content)


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "float": _float,
    "device": _device,
    "dtype": lambda content: found(DTYPES, content),
    "layout": lambda content: found(_LAYOUTS, content),
    "memory_format": lambda content: found(_MEMORY_FORMATS, content),
}


def encode_spec(spec: pytree.TreeSpec) -> Any:
    """A structure of tuples, lists and dicts as JSON; raises NotSupported for other classes."""
    return _encode_structure(pytree.tree_unflatten([_LEAF] * spec.num_leaves, spec))


def _encode_structure(tree: Any) -> Any:
    if tree is _LEAF:
        return _LEAF
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [_encode_structure(child) for child in tree]}
    if type(tree) in (dict, OrderedDict):
        return {type(tree).__name__: [[key, _encode_structure(child)] for key, child in tree.items()]}
    raise NotSupported(
        f"inputs or outputs that are a {type(tree).__name__} cannot be stored",
        hint="let the model take and return tensors in tuples, lists and dicts",
    )


def decode_spec(value: Any) -> pytree.TreeSpec:
    """The structure that `encode_spec` wrote."""
    return pytree.tree_structure(_decode_structure(value))


def _decode_structure(value: Any) -> Any:
    if value == _LEAF:
        return 0
    kind, content = single(value)
    children = checked(content, list)
    if kind in ("tuple", "list"):
        items = [_decode_structure(child) for child in children]
        return tuple(items) if kind == "tuple" else items
    if kind in ("dict", "OrderedDict"):
        pairs = [pair(item) for item in children]
        if not all(type(key) in (str, int, bool) for key, _ in pairs):
            raise Damaged("a key of a structure that is neither text nor a number")
        entries = {key: _decode_structure(child) for key, child in pairs}
        return entries if kind == "dict" else OrderedDict(entries)
    raise Damaged("a structure that is not of tuples, lists and dicts")


def encode_node(node: fx.Node, frame_number: Callable[[Frame], int]) -> dict[str, Any]:
    """One node as JSON; `frame_number` gives the number of a source line, each of which is stored once."""
    record: dict[str, Any] = {"name": node.name, "op": node.op}
    if node.op == "call_function":
        target = name_of(node.target)
        if target is None:
            raise NotSupported(
                f"the operator {node.target} cannot be stored",
                node=node.format_node(),
                hint="use ATen operators",
            )
        record["target"] = target
        record["args"] = [encode_argument(arg) for arg in node.args]
        if node.kwargs:
            record["kwargs"] = {key: encode_argument(arg) for key, arg in node.kwargs.items()}
    elif node.op == "get_attr":
        record["target"] = str(node.target)
    elif node.op == "output":
        record["args"] = [encode_argument(arg) for arg in node.args]
    elif node.op != "placeholder":
        raise IllFormed(f"a {node.op} node cannot be stored", node=node.format_node())
    if stack := node.meta.get("nn_module_stack"):
        record["modules"] = [[str(key), str(path), _type_name(kind)] for key, (path, kind) in stack.items()]
    if frames := user_frames(node.meta.get("stack_trace")):
        record["source"] = [frame_number(frame) for frame in frames]
    return record


def _type_name(kind: object) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def decode_node(record: Any, graph: fx.Graph, nodes: Mapping[str, fx.Node], frames: list[Frame]) -> fx.Node:
    """Append to `graph` the node that `encode_node` wrote."""
    record = checked(record, dict)
    name, op = identifier(record.get("name")), record.get("op")
    args = tuple(decode_argument(arg, nodes) for arg in checked(record.get("args", []), list))
    kwargs = checked(record.get("kwargs", {}), dict)
    target: Any = name
    if op == "call_function":
        target = resolve(checked(record.get("target"), str))
    elif op == "get_attr":
        target = qualified(record.get("target"))
    elif op not in ("placeholder", "output"):
        raise Damaged(f"a node that is a {str(op)[:40]!r}")
    node = graph.create_node(
        op,
        target,
        args if op in ("call_function", "output") else (),
        {identifier(key): decode_argument(arg, nodes) for key, arg in kwargs.items()},
        name=name,
    )
    if node.name != name:
        raise Damaged(f"the node name {name!r} occurs twice or is reserved")
    _restore_origin(node, record, frames)
    return node


def _restore_origin(node: fx.Node, record: dict[str, Any], frames: list[Frame]) -> None:
    modules = [checked(entry, list) for entry in checked(record.get("modules", []), list)]
    if modules:
        stack = {}
        for entry in modules:
            key, path, kind = (checked(part, str) for part in entry)
            stack[key] = (path, kind)
        node.meta["nn_module_stack"] = stack
    numbers = checked(record.get("source", []), list)
    if numbers:
        lines = [frames[checked(number, int)] for number in numbers]
        node.meta["stack_trace"] = "\n".join(
            f'File "{file}", line {line}, in {function}\n    {code}' for file, line, function, code in lines
        )


def user_frames(stack_trace: str | None) -> list[Frame]:
    """The source lines of a stack trace, outermost first, torch's own left out unless there are no others.

    Only the file's own name is kept: a stored program names no folder of the machine that made it.
    """
    matches = list(_FRAME.finditer(stack_trace or ""))
    matches = [match for match in matches if not match["file"].startswith(_LIBRARY)] or matches
    return [
        (
            Path(match["file"]).name,
            int(match["line"]),
            match["function"],
            (match["code"] or "").strip() or "-",
        )
        for match in matches
    ]


def identifier(value: Any) -> str:
    """A name that may stand in generated source."""
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value) or keyword.iskeyword(value):
        raise Damaged(f"the name {str(value)[:40]!r}")
    return value


def qualified(value: Any) -> str:
    """A dotted path of module and tensor names: printable text that needs no escape in quotes."""
    parts = value.split(".") if isinstance(value, str) else [""]
    if not all(part.isprintable() and _UNQUOTED.fullmatch(part) for part in parts):
        raise Damaged(f"the tensor name {str(value)[:40]!r}")
    return ".".join(parts)


def single(value: Any) -> tuple[str, Any]:
    """The key and content of a one-entry object."""
    if not isinstance(value, dict) or len(value) != 1:
        raise Damaged("a value of no known kind")
    return next(iter(value.items()))


def pair(value: Any) -> tuple[Any, Any]:
    """A two-entry list."""
    if not isinstance(value, list) or len(value) != 2:
        raise Damaged("an entry that is no pair")
    return value[0], value[1]


def checked(value: Any, kind: type[_Kind]) -> _Kind:
    """`value`, when it is of that JSON type."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Damaged(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def found(table: Mapping[str, _Kind], key: Any) -> _Kind:
    """The entry of a table that a file names."""
    if not isinstance(key, str) or key not in table:
        raise Damaged(f"{str(key)[:40]!r} is not known")
    return table[key]

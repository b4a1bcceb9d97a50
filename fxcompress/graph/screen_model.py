"""The JSON inside a `.pt2` file: what torch would evaluate, import or paste into source is checked.

torch's schema is `torch/_export/serde/schema.py`. Fields are recognised by their key wherever they occur, and
text that no rule knows must still be free of control characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from fxcompress.errors import UnsafeFile
from fxcompress.graph.expressions import IDENTIFIER, is_expression, is_guard
from fxcompress.graph.operators import resolve

_OPTIONAL_NAME = re.compile(
    rf"({IDENTIFIER.pattern})?", re.ASCII
)  # arguments of symbolic arithmetic have none
_QUALIFIED = re.compile(r"([A-Za-z0-9_@$-]+(\.[A-Za-z0-9_@$-]+)*)?", re.ASCII)
_PAYLOAD = re.compile(r"(weight|tensor)_[0-9]+", re.ASCII)
_PLAIN_TEXT = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]*")
_SPEC_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*", re.ASCII)
_DEVICE = re.compile(r"[a-z]+(:[0-9]+)?", re.ASCII)
_SPEC_KEY = re.compile(r"[A-Za-z0-9_.\- ]{0,255}", re.ASCII)
_DEEPEST = 200

_HIGHER_ORDER = frozenset(
    f"torch.ops.higher_order.{name}" for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")
)
_FORBIDDEN_KEYS = frozenset(("as_custom_obj", "custom_obj", "class_fqn", "as_operator"))
_FORBIDDEN_SPECS = frozenset(("collections.defaultdict", "collections.deque"))


class Refused(Exception):
    """What is wrong with a record; `screen_pt2` turns it into an UnsafeFile that names the record."""


def check_model(model: Any) -> None:
    """Check `models/*.json`; raises Refused with the offending text."""
    if not isinstance(model, dict):
        raise Refused("not a model description")
    for key, value, is_name in _walk(model):
        if not is_name:
            _check_field(key, value)
        _text(key, key)
        if isinstance(value, str):
            _text(key, value)


def _check_field(key: str, value: Any) -> None:
    if key in _FORBIDDEN_KEYS:
        raise Refused(f"it brings a custom object or a callable ({key})")
    for name in value if key in _MAPS and isinstance(value, dict) else ():
        _MAPS[key](key, name)
    check = _CHECKS.get(key)
    if check is None or value is None or isinstance(value, list):  # the elements of a list come one by one
        return
    if not isinstance(value, str):
        raise Refused(f"{key} is not text")
    check(key, value)


def check_payloads(config: Any, sizes: dict[str, int]) -> None:
    """Check a weights or constants config: raw tensors only, of records that exist and have that size."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise Refused("not a payload config")
    for name, entry in entries.items():
        _check_text(_QUALIFIED, "name", name)
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise Refused(f"{name!r} is pickled, which could run code")
        file = entry.get("path_name")
        if not isinstance(file, str) or not _PAYLOAD.fullmatch(file) or file not in sizes:
            raise Refused(f"{name!r} is not a stored tensor")
        if sizes[file] == 0 and _elements(entry) != 0:
            raise Refused(f"{name!r} claims a size that its record does not have")
    for key, value, _ in _walk(entries):
        if key == "expr_str":
            raise Refused("a stored tensor has a symbolic size")
        _text(key, value if isinstance(value, str) else "")


def _elements(entry: dict[str, Any]) -> int:
    meta = entry.get("tensor_meta")
    sizes = meta.get("sizes") if isinstance(meta, dict) else None
    total = 1
    for size in sizes if isinstance(sizes, list) else []:
        number = size.get("as_int") if isinstance(size, dict) else None
        total *= number if isinstance(number, int) else 1
    return total


def _walk(root: Any) -> Iterator[tuple[str, Any, bool]]:
    """Every (key, value, whether the key is one of the model's own names) below `root`.

    The elements of a list come with the key of the list. A model may well name an input "target" or "name";
    such keys stand in the maps of `_MAPS` and are no fields.
    """
    pending: list[tuple[str, Any, bool, int]] = [("", root, False, 0)]
    while pending:
        key, value, is_name, depth = pending.pop()
        if depth > _DEEPEST:
            raise Refused("it is nested unreasonably deep")
        yield key, value, is_name
        if isinstance(value, dict):
            names = key in _MAPS and not is_name
            pending.extend((child, item, names, depth + 1) for child, item in value.items())
        elif isinstance(value, list):
            pending.extend((key, item, is_name, depth + 1) for item in value)


def _text(key: str, value: str) -> None:
    if not _PLAIN_TEXT.fullmatch(value):
        raise Refused(f"{key[:40]!r} holds control characters")


def _check_text(pattern: re.Pattern[str], key: str, value: str) -> None:
    if not pattern.fullmatch(value):
        raise Refused(f"{key} {value[:80]!r} is not a plain name")


def _matches(pattern: re.Pattern[str]) -> Callable[[str, str], None]:
    return lambda key, value: _check_text(pattern, key, value)


def _expression(_key: str, value: str) -> None:
    if not is_expression(value):
        raise Refused(f"the size {value[:80]!r} is more than arithmetic on symbols")


def _guard(_key: str, value: str) -> None:
    if not is_guard(value):
        raise Refused(f"the guard {value[:80]!r} is more than a comparison of sizes")


def _target(_key: str, value: str) -> None:
    if value in _HIGHER_ORDER:
        return
    name = value.removeprefix("_") if value.startswith("_operator.") else value.removeprefix("torch.ops.")
    try:
        resolve(name)
    except UnsafeFile:
        raise Refused(f"it calls {value[:80]!r}, which is not an ATen operator") from None


def _spec(key: str, value: str) -> None:
    """A pytree structure, stored as JSON text inside the JSON; decoded as torch decodes it."""
    decoded = _decoded(value)
    if not isinstance(decoded, list) or len(decoded) != 2:
        raise Refused(f"{key} is not a structure")
    pending = [(decoded[1], 0)]
    while pending:
        node, depth = pending.pop()
        if not isinstance(node, dict) or depth > _DEEPEST:
            raise Refused(f"{key} is not a structure")
        _spec_type(key, node.get("type"))
        _spec_context(key, node.get("context"))
        children = node.get("children_spec")
        pending.extend((child, depth + 1) for child in (children if isinstance(children, list) else [None]))


def _decoded(text: str) -> Any:
    """JSON text as its value; text that is no JSON (a namedtuple's bare type name) as itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _spec_type(key: str, kind: Any) -> None:
    if kind is None:
        return
    if not isinstance(kind, str) or not _SPEC_TYPE.fullmatch(kind) or kind in _FORBIDDEN_SPECS:
        raise Refused(f"{key} holds a {str(kind)[:80]!r}, which could import a module")


def _spec_context(key: str, context: Any) -> None:
    """Contexts are null, names, or lists of them, as JSON text; an object could name a module to import."""
    if isinstance(context, str):
        context = _decoded(context)
    for item in context if isinstance(context, list) else [context]:
        if isinstance(item, str) and _SPEC_KEY.fullmatch(item):
            continue
        if item is not None and not isinstance(item, int):
            raise Refused(f"{key} has the key {str(item)[:80]!r}, which is not a plain name")


_CHECKS: dict[str, Callable[[str, str], None]] = {
    "expr_str": _expression,
    "guards_code": _guard,
    "target": _target,
    "in_spec": _spec,
    "out_spec": _spec,
    "type": _matches(_DEVICE),
    "name": _matches(_OPTIONAL_NAME),
    **dict.fromkeys(
        ("as_name", "user_input_name", "forward_arg_names", "field_names", "verifiers"), _matches(IDENTIFIER)
    ),
    **dict.fromkeys(
        ("parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name", "fqn"),
        _matches(_QUALIFIED),
    ),
}
"""What a text field must be, by its key."""

_MAPS: dict[str, Callable[[str, str], None]] = {
    **dict.fromkeys(
        (
            "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values",
            "as_string_to_argument", "opset_version", "metadata",
        ),
        _matches(IDENTIFIER),
    ),
    "treespec_namedtuple_fields": _matches(_SPEC_TYPE),
    "range_constraints": _expression,
}  # fmt: skip
"""Fields that map the model's own names to something, and what such a name must be."""

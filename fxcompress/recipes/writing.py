"""A recipe as TOML: every field that differs from its default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from fxcompress.errors import InputError


def toml_of(description: str, steps: Sequence[tuple[str, Any]]) -> str:
    """The text of a recipe file.

    Args:
        description: one line for a reader; left out when empty.
        steps: spelling and options of each stage.

    Raises:
        InputError: a field holds what a file cannot spell.
    """
    blocks = [f"description = {_value(description, 'description')}\n"] if description else []
    for name, options in steps:
        lines = ["[[pass]]", f"name = {_value(name, 'name')}"]
        lines += [f"{key} = {_value(value, f'{name}: {key}')}" for key, value in _given(options)]
        blocks.append("\n".join(lines) + "\n")
    if not blocks:
        return "pass = []\n"
    return "\n".join(blocks)


def _given(options: Any) -> Iterator[tuple[str, Any]]:
    """Fields whose value is not the default, by name."""
    for item in fields(options):
        value = getattr(options, item.name)
        if value is not None and value != _default(item):
            yield item.name, value


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _value(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if is_dataclass(value) and not isinstance(value, type):
        return _table(_given(value), where)
    if isinstance(value, Mapping):
        return _table(iter(value.items()), where)
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(item, where) for item in value) + "]"
    raise InputError(
        f"{where} is {getattr(value, '__name__', type(value).__name__)!r}, which a recipe file cannot spell",
        hint="pass it in Python: optimize(prune=Prune(...))",
    )


def _table(items: Iterator[tuple[str, Any]], where: str) -> str:
    pairs = [f"{_key(key)} = {_value(value, f'{where}.{key}')}" for key, value in items]
    return "{ " + ", ".join(pairs) + " }" if pairs else "{}"


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain else _value(name, name)

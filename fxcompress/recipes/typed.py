"""Dataclasses from plain data, by their own fields: what is unknown, of another type or refused is located.

There is no second list of options: names, types and allowed values are those of the dataclass.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from fxcompress.errors import CompressError, InputError
from fxcompress.recipes.positions import Path

Locate = Callable[[Path], str]
"""The place of a value for a reader, such as `recipe.toml:3`."""

_WORDS = {
    bool: ("true or false", "lists of booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
}


def build(kind: type[Any], given: Mapping[str, Any], path: Path, locate: Locate) -> Any:
    """An instance of a dataclass from a table.

    Args:
        kind: the dataclass.
        given: values as TOML has them.
        path: where the table is.
        locate: the place of a path.

    Raises:
        InputError: an unknown field, a value of another type, or one that the dataclass refuses; the message
            begins with the place.
    """
    hints = typing.get_type_hints(kind)
    names = [item.name for item in fields(kind) if _expressible(hints[item.name])]
    for key in given:
        if key not in names:
            raise _unknown(key, kind, names, locate((*path, key)))
    values = {key: _convert(value, hints[key], (*path, key), locate) for key, value in given.items()}
    try:
        return kind(**values)
    except CompressError as error:
        culprit = _culprit(error.message, given)
        place = locate(path if culprit is None else (*path, culprit))
        raise type(error)(f"{place}: {error.message}", hint=error.hint) from error


def suggestion(key: str, names: Sequence[str]) -> str:
    """What to say about a name that is unknown: the closest ones, or all."""
    close = difflib.get_close_matches(key, names, 2, 0.6)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(names)}" if names else "there are none"


def _unknown(key: str, kind: type[Any], names: Sequence[str], place: str) -> InputError:
    if any(item.name == key for item in fields(kind)):
        return InputError(
            f"{place}: {key!r} is a function, which a file cannot spell", hint="pass it in Python"
        )
    return InputError(f"{place}: unknown field {key!r}", hint=suggestion(key, names))


def _culprit(message: str, given: Mapping[str, Any]) -> str | None:
    """The field that a refusal speaks about: the one whose name it has, else whose value."""
    for key in given:
        if re.search(rf"\b{re.escape(key)}\b", message):
            return key
    return next((key for key, value in given.items() if repr(value) in message), None)


def _convert(value: Any, hint: Any, path: Path, locate: Locate) -> Any:
    for option in _options(hint):
        fitting = _fit(value, option, path, locate)
        if fitting is not _NO:
            return fitting
    raise InputError(
        f"{locate(path)}: {path[-1]!r} is {_shown(value)}", hint=f"{path[-1]} takes {_expected(hint)}"
    )


_NO = object()
"""Says that a value is not of a type; None is a value."""


def _fit(value: Any, option: Any, path: Path, locate: Locate) -> Any:
    """The value as the type has it, or `_NO`."""
    if option in (bool, str, int):
        return value if type(value) is option else _NO
    if option is float:
        return float(value) if type(value) in (int, float) else _NO
    if is_dataclass(option) and isinstance(option, type):
        return build(option, value, path, locate) if isinstance(value, dict) else _NO
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin is not None and isinstance(value, dict) and issubclass(origin, Mapping):
        return {key: _convert(item, inner[1], (*path, key), locate) for key, item in value.items()}
    if origin is not None and isinstance(value, list) and issubclass(origin, Sequence):
        return tuple(_convert(item, inner[0], path, locate) for item in value)
    return _NO


def _options(hint: Any) -> list[Any]:
    """The members of a union that a file can spell, or the type alone; None is what is left out."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(hint) for option in _options(member)]
    return [hint] if _spellable(hint) else []


def _spellable(hint: Any) -> bool:
    if hint in _WORDS or (is_dataclass(hint) and isinstance(hint, type)):
        return True
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping | Sequence)


def _expressible(hint: Any) -> bool:
    return bool(_options(hint))


def _expected(hint: Any) -> str:
    return " or ".join(dict.fromkeys(_word(option) for option in _options(hint)))


def _word(option: Any) -> str:
    if option in _WORDS:
        return _WORDS[option][0]
    if is_dataclass(option):
        return f"a table of {', '.join(item.name for item in fields(option))}"
    inner = typing.get_args(option)
    if issubclass(typing.get_origin(option), Mapping):
        return f"a table whose values are {_plural(inner[1])}"
    return f"a list of {_plural(inner[0])}"


def _plural(hint: Any) -> str:
    return " or ".join(_WORDS[option][1] for option in _options(hint) if option in _WORDS)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else repr(value)

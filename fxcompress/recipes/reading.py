"""A recipe from TOML: stages in the order of the file, checked against their dataclasses line by line.

description = "Half of the multiply-accumulates, then INT8"

[[pass]]
name = "prune"
ratio = 0.5
saliency = "l1"

[[pass]]
name = "fuse-batch-norm"

[[pass]]
name = "quantize"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxcompress.errors import InputError
from fxcompress.recipes.positions import positions
from fxcompress.recipes.recipe import VOCABULARY, Recipe, order_fault
from fxcompress.recipes.typed import Locate, build, suggestion

NAMED = Path(__file__).parent / "named"
"""The recipes that come with the package, known by their file names."""

_FORM = 'a recipe is a list of stages: [[pass]], then name = "prune" and its fields'


def named_recipes() -> tuple[str, ...]:
    """The names that `load_recipe` knows without a file."""
    return tuple(sorted(path.stem for path in NAMED.glob("*.toml")))


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """The recipe in a file, or one that comes with the package, by its name.

    Raises:
        InputError: no such file or name, or a text that `read_recipe` refuses.
    """
    path = Path(source)
    if not path.is_file() and str(source) in named_recipes():
        path = NAMED / f"{source}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"there is no recipe {str(source)!r}" if not path.exists() else f"{path} cannot be read: {error}",
            hint=f"pass the path of a .toml file, or one of {', '.join(named_recipes())}",
        ) from error
    return read_recipe(text, path.name)


def read_recipe(text: str, name: str = "recipe") -> Recipe:
    """The recipe that a TOML text spells.

    Args:
        text: the text.
        name: what messages call it: they begin with `name:line`.

    Raises:
        InputError: no TOML, an unknown stage or field, a value of another type or that the stage refuses, or
            stages in an order that cannot be.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is no TOML: {error}", hint=_FORM) from error
    if not data:
        raise InputError(f"{name} is empty", hint=_FORM)
    found = positions(text)

    def locate(path: tuple[str | int, ...]) -> str:
        return f"{name}:{found.line(path)}"

    steps = tuple(_step(item, index, locate) for index, item in enumerate(_stages(data, locate)))
    fault = order_fault(steps)
    if fault is not None:
        raise InputError(f"{locate(('pass', fault.place))}: {fault.message}", hint=fault.hint)
    return Recipe(steps, data.get("description", ""))


def _stages(data: Mapping[str, Any], locate: Locate) -> list[Any]:
    for key in data:
        if key not in ("pass", "description"):
            raise InputError(
                f"{locate((key,))}: unknown key {key!r}", hint=suggestion(key, ["pass", "description"])
            )
    if not isinstance(data.get("description", ""), str):
        raise InputError(f"{locate(('description',))}: the description is no text")
    stages = data.get("pass", [])
    if not isinstance(stages, list):
        raise InputError(f"{locate(('pass',))}: 'pass' is not a list of tables", hint=_FORM)
    return stages


def _step(item: Any, index: int, locate: Locate) -> Any:
    here = ("pass", index)
    if not isinstance(item, dict):
        raise InputError(f"{locate(here)}: {item!r} is not a table", hint=_FORM)
    name = item.get("name")
    if name is None:
        raise InputError(f"{locate(here)}: a stage without a name", hint=f"names: {', '.join(VOCABULARY)}")
    if not isinstance(name, str) or name not in VOCABULARY:
        raise InputError(
            f"{locate((*here, 'name'))}: there is no stage {name!r}",
            hint=suggestion(str(name), list(VOCABULARY)),
        )
    options = {key: value for key, value in item.items() if key != "name"}
    return build(VOCABULARY[name], options, here, locate)

"""The models that pruning coverage is measured on: our catalogue of architectures, and the nasty modules."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tests.architectures.catalog import CATALOG, LIBRARY

_NASTY = ("nasty_attention", "nasty_convolution", "nasty_space", "nasty_layout", "nasty_recurrent")


@dataclass(frozen=True)
class Subject:
    """One model, the same for every tool.

    Args:
        name: unique.
        kind: "architecture" or "nasty" (a small module with one idea).
        model: makes it, in eval mode, with parameters that hide nothing.
        inputs: its example inputs; a tuple is positional, a dict is by keyword.
    """

    name: str
    kind: str
    model: Callable[[], nn.Module]
    inputs: tuple[Any, ...] | dict[str, Any]


def subjects() -> dict[str, Subject]:
    """Every subject by name."""
    found = [Subject(item.name, "architecture", item.model, item.example(2)) for item in (*CATALOG, *LIBRARY)]
    for module in _NASTY:
        if importlib.util.find_spec(f"tests.architectures.{module}") is None:
            continue
        table = importlib.import_module(f"tests.architectures.{module}")
        ideas = getattr(table, module.removeprefix("nasty_").upper())
        found.extend(Subject(f"nasty_{item.name}", "nasty", item.model, item.example(2)) for item in ideas)
    return {subject.name: subject for subject in found}

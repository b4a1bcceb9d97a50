"""What a program takes and returns: names, structure and which dimensions are dynamic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import fx
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Example:
    """Inputs that the model was captured with, in the structure of the user's call, of real tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Signature:
    """The flat names and the nested structure of a program's inputs and outputs.

    Args:
        inputs: the placeholder names, in the order of the flattened `(args, kwargs)`.
        outputs: one name per output tensor: its dict key, `output` for a single tensor, else `output_0`, ...
        dynamic: input name -> {dimension: symbol}; equal symbols are equal sizes.
        in_spec: structure of `(args, kwargs)`; every leaf is a tensor.
        out_spec: structure of the result, of tuples, lists and dicts only; every leaf is a tensor.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec


class Holder(Protocol):
    """Anything that holds a captured graph; what queries and edits ask of a `Program`."""

    @property
    def module(self) -> fx.GraphModule: ...

    @property
    def signature(self) -> Signature: ...

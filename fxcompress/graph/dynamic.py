"""Which input dimensions are dynamic: the batch by default, others as the caller says.

A caller writes `torch.export`'s forms (a dict by argument name or a tuple by position, of `Dim`,
`Dim.DYNAMIC`, `Dim.AUTO`) or plain names: `{"input_ids": {0: "batch", 1: "sequence"}}`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError
from fxcompress.graph.signature import Example

BATCH = "batch"
_FORMS = 'write {"input_ids": {0: "batch", 1: "sequence"}}, or dynamic_shapes as torch.export takes them'
_STATIC = (None, Dim.STATIC)


@dataclass(frozen=True)
class Dynamic:
    """The dynamic dimensions of every leaf of `(args, kwargs)`.

    Args:
        names: leaf position -> {dimension: symbol}.
        asked: symbols that the caller named or bounded; others are the default batch.
        marks: symbol -> the `torch.export` mark (a `Dim` with its range, or `Dim.DYNAMIC`).
    """

    names: tuple[dict[int, str], ...]
    asked: frozenset[str] = frozenset()
    marks: Mapping[str, Any] | None = None

    def without_batch(self) -> Dynamic:
        """The same with only what the caller asked for."""
        kept = tuple({dim: name for dim, name in leaf.items() if name in self.asked} for leaf in self.names)
        return replace(self, names=kept)

    @property
    def symbols(self) -> set[str]:
        """Every symbol in use."""
        return {name for leaf in self.names for name in leaf.values()}

    def for_export(self, model: nn.Module, example: Example) -> dict[str, Any] | None:
        """The argument `dynamic_shapes` of `torch.export.export`; None when everything is static."""
        if not self.symbols:
            return None
        marks = self.marks or {}

        def mark(position: int) -> dict[int, Any] | None:
            leaf = self.names[position]
            return {dim: marks.get(name, Dim.DYNAMIC) for dim, name in leaf.items()} or None

        marked: dict[str, Any] = pytree.tree_map(mark, _numbered(model, example))
        return marked


def resolve(model: nn.Module, example: Example, dynamic_shapes: Any) -> Dynamic:
    """The dynamic dimensions for an example; raises InputError where the caller's wish does not fit it."""
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    wishes = _wishes(model, example, dynamic_shapes, len(leaves))
    marks: dict[str, Any] = {}
    asked: set[str] = set()
    names: list[dict[int, str]] = []
    for position, wish in enumerate(wishes):
        named: dict[int, str] = {}
        for dim, mark in wish.items():
            if mark in _STATIC or isinstance(mark, int):
                continue
            name = _name(mark, position, dim)
            named[dim] = name
            asked.add(name)
            marks[name] = Dim.DYNAMIC if isinstance(mark, str) else mark
        names.append(named)
    batch = next((leaf[0] for leaf in names if 0 in leaf), BATCH)
    size = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim), None)
    for leaf, named, wish in zip(leaves, names, wishes, strict=True):
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == size and 0 not in wish:
            named[0] = batch
    dynamic = Dynamic(tuple(dict(sorted(named.items())) for named in names), frozenset(asked), marks)
    _check_sizes(dynamic, leaves)
    return dynamic


def grow(example: Example, dynamic: Dynamic, batch: int = 2) -> Example:
    """The example with batches of one repeated to `batch`, because tracing takes a size of one as fixed."""
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    grown = [
        resize(leaf, batch) if 0 in dims and leaf.shape[0] == 1 else leaf
        for leaf, dims in zip(leaves, dynamic.names, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(grown, spec)
    return Example(args, kwargs)


def resize(leaf: torch.Tensor, batch: int) -> torch.Tensor:
    """A batch of the given size made of the leaf's samples, repeated as needed."""
    return leaf[torch.arange(batch, device=leaf.device) % leaf.shape[0]]


def _name(mark: Any, position: int, dim: int) -> str:
    if isinstance(mark, str):
        return mark
    if isinstance(mark, Dim):
        return str(mark.__name__)
    return BATCH if dim == 0 else f"dim_{position}_{dim}"


def _check_sizes(dynamic: Dynamic, leaves: Sequence[Any]) -> None:
    sizes: dict[str, int] = {}
    for leaf, named in zip(leaves, dynamic.names, strict=True):
        for dim, name in named.items():
            if not isinstance(leaf, torch.Tensor) or not -leaf.ndim <= dim < leaf.ndim:
                raise InputError(
                    f"dynamic dimension {dim} ({name!r}) does not exist in the example", hint=_FORMS
                )
            size = leaf.shape[dim]
            if sizes.setdefault(name, size) != size:
                raise InputError(
                    f"dimension {name!r} is {sizes[name]} in one example input and {size} in another",
                    hint="give equal sizes, or two names",
                )
            if size < 2 and dim != 0:
                raise InputError(
                    f"dynamic dimension {name!r} has size {size} in the example, taken as fixed in tracing",
                    hint="pass an example where it is at least 2",
                )


def _wishes(model: nn.Module, example: Example, shapes: Any, count: int) -> list[Mapping[int, Any]]:
    """Per leaf, {dimension: what the caller wrote}."""
    found: list[Mapping[int, Any]] = [{} for _ in range(count)]
    if shapes is None:
        return found
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    tree: Any = _numbered(model, example)
    if isinstance(shapes, Mapping) and all(isinstance(key, int) for key in shapes) and count == 1:
        tree = 0
    elif isinstance(shapes, tuple | list):
        if len(shapes) > len(tree):
            raise InputError(f"dynamic_shapes has {len(shapes)} entries for {len(tree)} inputs", hint=_FORMS)
        tree = list(tree.values())[: len(shapes)]
    else:
        tree = _flat_keywords(tree)
    _match(tree, shapes, found, leaves)
    return found


def _match(tree: Any, shapes: Any, found: list[Mapping[int, Any]], leaves: Sequence[Any]) -> None:
    """Walk the caller's nest along the tree of leaf numbers, filling `found`."""
    if shapes is None:
        return
    if isinstance(tree, int):
        found[tree] = _leaf(shapes, leaves[tree])
    elif isinstance(tree, Mapping) and isinstance(shapes, Mapping):
        for key, wish in shapes.items():
            if key not in tree:
                known = ", ".join(map(str, tree))
                raise InputError(f"dynamic_shapes names {key!r}; the inputs are {known}", hint=_FORMS)
            _match(tree[key], wish, found, leaves)
    elif isinstance(tree, tuple | list) and isinstance(shapes, tuple | list) and len(tree) >= len(shapes):
        for child, wish in zip(tree, shapes, strict=False):
            _match(child, wish, found, leaves)
    else:
        raise InputError("dynamic_shapes does not have the structure of the inputs", hint=_FORMS)


def _leaf(wish: Any, leaf: Any) -> Mapping[int, Any]:
    rank = leaf.ndim if isinstance(leaf, torch.Tensor) else 0
    if isinstance(wish, Mapping) and all(isinstance(dim, int) for dim in wish):
        return {dim + rank if dim < 0 else dim: mark for dim, mark in wish.items()}
    if isinstance(wish, tuple | list) and len(wish) <= rank:
        return dict(enumerate(wish))
    raise InputError(f"dynamic_shapes cannot be {wish!r} for an input of {rank} dimensions", hint=_FORMS)


def _numbered(model: nn.Module, example: Example) -> dict[str, Any]:
    """The inputs by argument name, each leaf replaced by its position in the flattened `(args, kwargs)`."""
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    args, kwargs = pytree.tree_unflatten(list(range(len(leaves))), spec)
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _flat_keywords(tree: dict[str, Any]) -> dict[str, Any]:
    """Names that went into `**kwargs` beside the others."""
    flat = dict(tree)
    for value in tree.values():
        if isinstance(value, dict):
            flat.update({key: item for key, item in value.items() if key not in flat})
    return flat

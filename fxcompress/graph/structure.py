"""Results and fixed arguments: the structures of a program, of tuples, lists and dicts of tensors only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils import _pytree as pytree


def plain(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The structure with every registered class as a dict (when its keys are known) or a list.

    Transformers' `ModelOutput` becomes a dict, a named tuple a dict by field, a cache a dict or list.
    """
    if spec.is_leaf():
        return spec
    children = [plain(child) for child in spec.children()]
    keys = _keys(spec)
    if keys is not None:
        return pytree.TreeSpec(dict, keys, children)
    return pytree.TreeSpec(spec.type if spec.type in (tuple, list) else list, None, children)


def _keys(spec: pytree.TreeSpec) -> list[str] | None:
    fields = getattr(spec.context, "_fields", None)
    context = list(fields) if fields is not None else spec.context
    if isinstance(context, tuple) and context and isinstance(context[0], list | tuple):
        context = context[0]
    if isinstance(context, list | tuple) and len(context) == spec.num_children:
        if all(isinstance(key, str) for key in context):
            return list(context)
        if spec.type is dict:
            return [str(key) for key in context]
    return None


def prune(spec: pytree.TreeSpec, keep: Sequence[bool]) -> pytree.TreeSpec | None:
    """The structure without the leaves that are not kept; None when nothing is left of a leaf."""
    flags = iter(keep)
    return _prune(spec, flags)


def _prune(spec: pytree.TreeSpec, flags: Iterator[bool]) -> pytree.TreeSpec | None:
    if spec.is_leaf():
        return spec if next(flags) else None
    children = [_prune(child, flags) for child in spec.children()]
    kept = [child for child in children if child is not None]
    context = spec.context
    if spec.type is dict:
        context = [key for key, child in zip(context, children, strict=True) if child is not None]
    return pytree.TreeSpec(spec.type, context, kept)


def output_names(spec: pytree.TreeSpec) -> tuple[str, ...]:
    """A name per leaf: the path of dict keys and positions to it, `output` for what has no key."""
    names = ["_".join(path) for path in _paths(spec, ())]
    named = [name if not name[:1].isdigit() else f"output_{name}" for name in (n or "output" for n in names)]
    unique: list[str] = []
    for name in named:
        candidate, count = name, 0
        while candidate in unique:
            count += 1
            candidate = f"{name}_{count}"
        unique.append(candidate)
    return tuple(unique)


def _paths(spec: pytree.TreeSpec, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if spec.is_leaf():
        yield path
        return
    keys: Sequence[Any] = spec.context if spec.type is dict else range(spec.num_children)
    for key, child in zip(keys, spec.children(), strict=True):
        yield from _paths(child, (*path, str(key)))

"""Calibration data as samples: how many a batch holds, and batches cut into pieces or joined to chunks.

A program says by its signature which inputs have a row per sample; where its batch is static, a batch is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program


def sample_count(program: Program, flat: Sequence[Tensor]) -> int:
    """How many samples flat inputs hold: by the dynamic batch, else by the first input with a dimension."""
    _, total = _counted(program, flat)
    if total is not None:
        return total
    return next((value.shape[0] for value in flat if value.dim()), 1)


def pieces(program: Program, batches: Iterable[Any], size: int) -> Iterator[list[Tensor]]:
    """Batches in pieces of at most `size` samples where the batch is dynamic; whole ones where it is not.

    Every sample comes once.
    """
    seen: set[bytes] = set()
    for flat in flat_batches(program, batches):
        yield from split(program, _unseen(program, flat, seen), size)


def rechunked(program: Program, held: Iterable[list[Tensor]], size: int) -> list[list[Tensor]]:
    """The same samples in chunks of `size`; those that differ in more than the batch stay apart."""
    groups: list[list[list[Tensor]]] = []
    for flat in held:
        if groups and _alike(program, groups[-1][-1], flat):
            groups[-1].append(flat)
        else:
            groups.append([flat])
    return [part for group in groups for part in split(program, _together(program, group), size)]


def _alike(program: Program, one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two batches differ in their rows alone, of which there is a dynamic number."""
    counted, total = _counted(program, one)
    return total is not None and all(
        left.shape[1:] == right.shape[1:] if own else torch.equal(left, right)
        for left, right, own in zip(one, other, counted, strict=True)
    )


def _together(program: Program, group: list[list[Tensor]]) -> list[Tensor]:
    if len(group) == 1:
        return group[0]
    counted, _ = _counted(program, group[0])
    return [
        torch.cat(values) if own else values[0]
        for values, own in zip(zip(*group, strict=True), counted, strict=True)
    ]


def split(program: Program, flat: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    """One batch in pieces of at most `size` samples; itself where the program's batch is static."""
    counted, total = _counted(program, flat)
    if total is None:
        yield flat
        return
    for start in range(0, total, size):
        yield [
            value[start : start + size] if own else value for value, own in zip(flat, counted, strict=True)
        ]


def _counted(program: Program, flat: Sequence[Tensor]) -> tuple[list[bool], int | None]:
    """Which inputs have a row per sample, and how many; None where the program's batch is static."""
    marks = [program.signature.dynamic.get(name, {}).get(0) for name in program.signature.inputs]
    symbol = next((mark for mark in marks if mark is not None), None)
    if symbol is None:
        return [False for _ in marks], None
    return [mark == symbol for mark in marks], flat[marks.index(symbol)].shape[0]


def _unseen(program: Program, flat: list[Tensor], seen: set[bytes]) -> list[Tensor]:
    """The samples of a batch that are not in `seen`, which they join; a static batch is left whole."""
    counted, total = _counted(program, flat)
    if total is None:
        return flat
    fresh = []
    for row in range(total):
        found = _digest(value[row] if own else value for value, own in zip(flat, counted, strict=True))
        if found not in seen:
            seen.add(found)
            fresh.append(row)
    if len(fresh) == total:
        return flat
    return [value[fresh] if own else value for value, own in zip(flat, counted, strict=True)]


def _digest(values: Iterable[Tensor]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()

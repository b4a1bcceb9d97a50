"""Whether a captured program computes what its model does, also for sizes it was not captured with.

A trace can specialise silently: `if x.shape[0] > 1` is true for every batch that tracing has in mind. So the
model and the program are run and compared, with a batch of one and of three and with other dynamic dimensions
halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, InputError
from fxcompress.graph import walk
from fxcompress.graph.dynamic import Dynamic, resize
from fxcompress.graph.execute import run_flat
from fxcompress.graph.modes import has_mode, in_training
from fxcompress.graph.program import Program
from fxcompress.graph.signature import Example
from fxcompress.graph.tracing import describe, first_line

RELATIVE = 1e-3
"""Largest difference, relative to the largest value: the same kernels on the same values differ far less."""


def check(run: Callable[[Example], Any], program: Program, example: Example, dynamic: Dynamic) -> None:
    """Raise CaptureError where the program differs from what `run` returns for the example at any tried size.

    Sizes that the model itself refuses are left out, and so is a program that draws random numbers.
    """
    if is_random(program):
        return
    for variant in _variants(example, dynamic):
        try:
            expected = _tensors(run(variant))
        except InputError:
            continue
        try:
            found = run_flat(program, _tensors((variant.args, variant.kwargs)))
        except Exception as error:
            raise _differs(variant, f"it fails: {first_line(error)}") from error
        for name, one, other in zip(program.signature.outputs, expected, found, strict=True):
            _compare(variant, name, one, other)


def is_random(program: Program) -> bool:
    """Whether two runs of the program may differ."""
    return any(_draws(node) for node in program.graph.nodes if node.op == "call_function")


def _draws(node: Any) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    if has_mode(node):
        return in_training(node)
    return walk.argument(node, "dropout_p", 1.0) != 0.0


def _variants(example: Example, dynamic: Dynamic) -> Iterator[Example]:
    if not dynamic.symbols:
        yield example
        return
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    for batch, halve in ((1, False), (3, True)):
        resized = [
            _resize(leaf, dims, batch, halve) for leaf, dims in zip(leaves, dynamic.names, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(resized, spec)
        yield Example(args, kwargs)


def _resize(leaf: Any, dims: dict[int, str], batch: int, halve: bool) -> Any:
    for dim in dims:
        if dim == 0:
            leaf = resize(leaf, batch)
        elif halve:
            leaf = leaf.narrow(dim, 0, (leaf.shape[dim] + 1) // 2)
    return leaf


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _compare(variant: Example, name: str, one: torch.Tensor, other: torch.Tensor) -> None:
    if one.shape != other.shape or one.dtype != other.dtype:
        raise _differs(
            variant,
            f"{name} is {one.dtype}{list(one.shape)}, the graph makes {other.dtype}{list(other.shape)}",
        )
    if not one.numel() or torch.equal(one, other):
        return
    one, other = torch.nan_to_num(one.to(torch.float64)), torch.nan_to_num(other.to(torch.float64))
    difference = (one - other).abs().max().item()
    if difference > RELATIVE * one.abs().max().item() + 1e-6:
        raise _differs(variant, f"{name} differs by {difference:.3g}")


def _differs(variant: Example, how: str) -> CaptureError:
    return CaptureError(
        f"the captured graph does not compute what the model does for inputs {describe(variant)}: {how}",
        hint="the model's Python code does something else for these sizes; make it the same for all",
    )

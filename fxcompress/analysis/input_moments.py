"""What the inputs of matrix products look like together: `sum x x'`, streamed.

The memory is that of the sums, whatever the number of samples: products that read one tensor share its sum,
and where all of them together are too large the data is read several times, some products each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program

MEMORY = 1 << 30
"""Bytes of sums that are held at once."""


def input_moments(
    program: Program, batches: Iterable[Any], tensors: Sequence[str], memory: int = MEMORY
) -> Iterator[tuple[str, Tensor, int]]:
    """Yield the name, the sum, `[K, K]` float64, of each tensor `[.., K]` named, over all batches, and of how
    many rows.

    Data that can be read only once is read once, whatever the memory.

    Raises:
        InputError: no batch, one that does not fit, a tensor that is none, or a NaN or infinity in one.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    missing = [name for name in tensors if name not in nodes]
    if missing:
        raise InputError(f"the program has no tensor {missing[0]!r}")
    widths = {name: walk.hint_shape(nodes[name])[-1] for name in dict.fromkeys(tensors)}
    for names in _turns(widths, memory, once=isinstance(batches, Iterator)):
        found = _read(program, batches, {name: widths[name] for name in names})
        yield from ((name, total, rows) for name, (total, rows) in found.items())


def _turns(widths: dict[str, int], memory: int, *, once: bool) -> Iterator[list[str]]:
    """Names whose sums fit in the memory together; each turn has at least one."""
    turn: list[str] = []
    used = 0
    for name, width in widths.items():
        size = 8 * width * width
        if turn and used + size > memory and not once:
            yield turn
            turn, used = [], 0
        turn.append(name)
        used += size
    if turn:
        yield turn


def _read(program: Program, batches: Iterable[Any], widths: dict[str, int]) -> dict[str, tuple[Tensor, int]]:
    observer = _Observer(program, widths)
    count = 0
    for count, flat in enumerate(flat_batches(program, batches), start=1):  # noqa: B007 - counted
        with torch.no_grad():
            observer.run_flat(flat)
    if count == 0:
        raise InputError("the calibration data is empty", hint="pass an iterable with at least one batch")
    return {name: (total, observer.rows[name]) for name, total in observer.sums.items()}


class _Observer(Executor):
    """Adds up the products of the tensors asked for."""

    def __init__(self, program: Program, widths: dict[str, int]) -> None:
        super().__init__(program)
        self.sums = {name: torch.zeros(width, width, dtype=torch.float64) for name, width in widths.items()}
        self.rows = dict.fromkeys(widths, 0)

    def after(self, node: fx.Node, value: Any) -> Any:
        """Add one value; it passes through."""
        total = self.sums.get(node.name)
        if total is None:
            return value
        rows = value.detach().reshape(-1, total.shape[0]).float()
        product = (rows.mT @ rows).double()
        if not bool(product.isfinite().all()):
            raise InputError(
                f"{node.name} holds a NaN or an infinity in the calibration data",
                node=node.format_node(),
                source=walk.source(node),
            )
        total += product
        self.rows[node.name] += len(rows)
        return value

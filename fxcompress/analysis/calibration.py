"""Ranges of activations, from data that streams through the program once.

Each tensor keeps two numbers or one histogram, whatever the number of samples; one batch is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.analysis.bounds import bounded
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.numerics.ranges import Estimator, MinMax, Range


def calibrate(
    program: Program,
    batches: Iterable[Any],
    tensors: Iterable[str],
    *,
    estimator: Callable[[], Estimator] = MinMax,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Range]:
    """Return the range of each tensor in `tensors` (node names) over all batches.

    A batch is whatever the model takes: a tensor, a tuple or dict of inputs, or `(inputs, label)`. The
    program is run in evaluation mode. `estimator` makes what decides a range, one for each tensor
    (`numerics.ranges.ESTIMATORS` has them by name); where a function bounds its values, such as a rectifier,
    the range keeps to it (`analysis.bounds`). `progress` is called after each batch with the number of
    batches so far.

    Raises:
        InputError: no batch, a batch that does not fit, a tensor that holds no value in any batch, or a NaN
            in one of the tensors or in an input, or an infinity in an input (the error names the tensor, the
            user's line and the batch). A tensor that holds an infinity has the range `[-inf, inf]`.
    """
    return calibrate_both(program, batches, tensors, estimator=estimator, progress=progress)[1]


_ENDLESS = Range(-math.inf, math.inf), Range(-math.inf, math.inf)


def calibrate_both(
    program: Program,
    batches: Iterable[Any],
    tensors: Iterable[str],
    *,
    estimator: Callable[[], Estimator],
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Return the smallest and largest value of each tensor, and the range decided on, from one pass.

    Arguments and errors are those of :func:`calibrate`.
    """
    observer = _Observer(program.copy().eval(), {name: estimator() for name in tensors})
    count = 0
    for count, flat in enumerate(flat_batches(program, batches), start=1):
        observer.batch = count - 1
        with torch.no_grad():
            observer.run_flat(flat)
        if progress is not None:
            progress(count)
    if count == 0:
        raise InputError("the calibration data is empty", hint="pass an iterable with at least one batch")
    nodes = {node.name: node for node in program.graph.nodes}
    decided = {
        name: _ENDLESS if name in observer.infinite else _decided(nodes[name], seen, count)
        for name, seen in observer.estimators.items()
    }
    return {name: both[0] for name, both in decided.items()}, {
        name: both[1] for name, both in decided.items()
    }


def _decided(node: fx.Node, estimator: Estimator, batches: int) -> tuple[Range, Range]:
    """What one tensor was seen to hold, and its range, kept to what the function that makes it can yield."""
    try:
        seen, found = estimator.seen(), estimator.range()
    except ValueError as error:
        raise InputError(
            f"the calibration data never reaches {node.name}: it is empty in all {batches} batches",
            hint=f"add samples that go through it, or leave it in float with "
            f"Quantize(exclude=({node.name!r},))",
            node=node.format_node(),
            source=walk.source(node),
        ) from error
    return seen, bounded(node, found, seen)


class _Observer(Executor):
    """Shows every value of the tensors asked for to their estimators."""

    def __init__(self, program: Program, estimators: dict[str, Estimator]) -> None:
        super().__init__(program)
        missing = sorted(set(estimators) - {node.name for node in program.graph.nodes})
        if missing:
            raise InputError(f"the program has no tensor {missing[0]!r}")
        self.estimators = estimators
        self.infinite: set[str] = set()
        self.batch = 0

    def after(self, node: fx.Node, value: Any) -> Any:
        """Update the node's estimator; the value passes through."""
        seen = self.estimators.get(node.name)
        if seen is None or not isinstance(value, Tensor) or node.name in self.infinite:
            return value
        if bool(value.isinf().any()) and not bool(value.isnan().any()):
            self.infinite.add(node.name)
            return value
        seen.update(value)
        if value.numel() and not seen.seen().finite:
            raise InputError(
                f"{node.name} holds a NaN in calibration batch {self.batch}",
                hint="look at this batch, and at the model's numerics on it",
                node=node.format_node(),
                source=walk.source(node),
            )
        return value

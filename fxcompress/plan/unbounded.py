"""Tensors that hold infinities: the minus infinity of a mask that is added to scores has no integer.

What makes or reads one stays in float, which costs nothing: it ends in a softmax. A NaN is another matter,
and calibration refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import fx

from fxcompress.numerics.ranges import Range

UNBOUNDED = "it makes or reads an infinity (a mask), which integers cannot hold"


def unbounded(nodes: Iterable[fx.Node], ranges: Mapping[str, Range]) -> tuple[str, ...]:
    """Return the names of the operators that make or read a tensor whose range is infinite."""
    infinite = {name for name, found in ranges.items() if math.inf in (-found.low, found.high)}
    if not infinite:
        return ()
    return tuple(
        node.name
        for node in nodes
        if node.op == "call_function"
        and (node.name in infinite or any(source.name in infinite for source in node.all_input_nodes))
    )

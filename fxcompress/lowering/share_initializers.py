"""Store equal tensors once.

Zero points, shape constants and scales repeat from layer to layer; a tied weight may have been written twice.
Two stored tensors are one when type, shape and bytes agree. Types that numpy does not have (bfloat16, int4)
are left
alone: onnx-graphsurgeon would have to convert them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from fxcompress.lowering.match import is_output, redirect


def share_initializers(graph: Any) -> int:
    """Let readers of equal stored tensors read the first one; returns how many copies lost their readers."""
    alike: dict[tuple[object, ...], list[Any]] = defaultdict(list)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and not is_output(graph, tensor) and _is_native(tensor.dtype):
            alike[str(tensor.dtype), tuple(tensor.shape)].append(tensor)
    return sum(_share(graph, tensors) for tensors in alike.values() if len(tensors) > 1)


def _share(graph: Any, tensors: list[Any]) -> int:
    first: dict[bytes, Any] = {}
    shared = 0
    for tensor in tensors:
        digest = hashlib.sha1(tensor.values.tobytes(), usedforsecurity=False).digest()
        original = first.setdefault(digest, tensor)
        if original is not tensor:
            shared += redirect(graph, tensor, original)
    return shared


def _is_native(dtype: Any) -> bool:
    return not isinstance(dtype, int) and np.dtype(dtype).kind in "biuf"

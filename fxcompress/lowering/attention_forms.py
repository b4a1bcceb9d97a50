"""The key of an attention transposed in one step.

The exporter transposes the last two dimensions of a key through a rank-three detour whose shapes it computes
at run
time: eight nodes, two copies, and nothing that the runtime could fuse into its MatMul.

    Reshape(Transpose(Reshape(k, [-1, S, D]), [0, 2, 1]), [..., D, S])  =>  Transpose(k, [..., r-1, r-2])

The shapes are recognised as stored numbers or as the pieces of `Shape(k)` they are made of.
"""

from __future__ import annotations

from typing import Any

from fxcompress.lowering.match import constant, maker, only_read_by

Piece = tuple[Any, int, int] | None
"""A part of a shape: dimensions from a to b of a tensor; None for -1."""


def transpose_keys_directly(graph: Any) -> int:
    """Apply the rule; returns how many detours went."""
    changed = 0
    for node in [node for node in graph.nodes if node.op == "Reshape"]:
        changed += _shorten(graph, node)
    return changed


def _shorten(graph: Any, last: Any) -> bool:
    middle = maker(last.inputs[0], "Transpose")
    if middle is None or list(middle.attrs.get("perm", [])) != [0, 2, 1]:
        return False
    first = maker(middle.inputs[0], "Reshape")
    if first is None or first.inputs[0].shape is None or not only_read_by(graph, first.outputs[0], [middle]):
        return False
    key = first.inputs[0]
    rank = len(key.shape)
    if rank < 3 or not only_read_by(graph, middle.outputs[0], [last]):
        return False
    if not _is_detour(key, rank, first.inputs[1], last.inputs[1]):
        return False
    last.op, last.inputs = "Transpose", [key]
    last.attrs = {"perm": [*range(rank - 2), rank - 1, rank - 2]}
    return True


def _is_detour(key: Any, rank: int, there: Any, back: Any) -> bool:
    """Whether `there` is [-1, S, D] and `back` is [..., D, S], for a key of shape [..., S, D]."""
    flattened, restored = constant(there), constant(back)
    if flattened is not None and restored is not None:
        sizes = list(key.shape)
        swapped = [*sizes[:-2], sizes[-1], sizes[-2]]
        free = [position for position, size in enumerate(swapped) if not isinstance(size, int)]
        known = all(
            free == [position] or size == want for position, (size, want) in enumerate(zip(restored, swapped))
        )
        return list(flattened) == [-1, *sizes[-2:]] and len(restored) == rank and known and len(free) <= 1
    pieces, parts = _pieces(there), _pieces(back)
    if pieces is None or parts is None:
        return False
    rows, columns, lead = (key, rank - 2, rank - 1), (key, rank - 1, rank), (key, 0, rank - 2)
    return _same(pieces, [None, rows, columns]) and _same(parts, [lead, columns, rows])


def _pieces(shape: Any) -> list[Piece] | None:
    """A concatenated shape as pieces of tensors' shapes; None when it has another part."""
    concat = maker(shape, "Concat")
    if concat is None:
        return None
    found: list[Piece] = []
    for part in concat.inputs:
        values = constant(part)
        if values is not None and values.tolist() == [-1]:
            found.append(None)
            continue
        piece = _slice_of_shape(part)
        if piece is None:
            return None
        found.append(piece)
    return found


def _slice_of_shape(part: Any) -> Piece:
    """Slice(Shape(x), a, b) as (x, a, b) with non-negative bounds."""
    cut = maker(part, "Slice")
    shape = maker(cut.inputs[0], "Shape") if cut is not None else None
    if (
        cut is None
        or shape is None
        or len(cut.inputs) != 3
        or shape.attrs.get("start", 0)
        or "end" in shape.attrs
    ):
        return None
    tensor = shape.inputs[0]
    start, stop = constant(cut.inputs[1]), constant(cut.inputs[2])
    if tensor.shape is None or start is None or stop is None or start.size != 1 or stop.size != 1:
        return None
    begin, end, _ = slice(int(start.item()), int(stop.item())).indices(len(tensor.shape))
    return tensor, begin, end


def _same(pieces: list[Piece], wanted: list[Piece]) -> bool:
    if len(pieces) != len(wanted):
        return False
    for piece, want in zip(pieces, wanted, strict=True):
        if (piece is None) != (want is None):
            return False
        if piece is not None and want is not None and (piece[0] is not want[0] or piece[1:] != want[1:]):
            return False
    return True

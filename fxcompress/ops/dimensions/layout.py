"""Operators that reorder, cut and join dimensions without computing anything."""

from __future__ import annotations

from torch.fx import Node

from fxcompress.axes.expression import Axis, Dim, concat, frozen, product
from fxcompress.graph.walk import hint
from fxcompress.ops.arguments import arguments, hints, tensor_arguments
from fxcompress.ops.dimensions.space import Dims, Space, Value


def reshape(space: Space, node: Node) -> Value:
    """`view`, `reshape`, `flatten`, `unflatten`, `squeeze`, `unsqueeze`: row-major order is kept."""
    return space.reshape(node, space.of(node.all_input_nodes[0]), hints(node.meta["val"]))


def reshape_as(space: Space, node: Node) -> Value:
    """`reshape` to the shape of a second tensor, whose dimensions must go with the result's."""
    bound = arguments(node)
    result = space.reshape(node, space.of(bound["self"]), hints(node.meta["val"]))
    for own, other in zip(result, space.of(bound["other"]), strict=True):
        space.unify(node, own, other)
    return result


def permute(space: Space, node: Node) -> Value:
    """The dimensions in the order that the arguments name."""
    bound = arguments(node)
    x = space.of(bound["self"])
    return tuple(x[place] for place in bound["dims"])


def transpose(space: Space, node: Node) -> Value:
    """`transpose.int` and its other names; `t`, which swaps the two dimensions of a matrix."""
    source, *places = arguments(node).values()
    dims = list(space.of(source))
    if len(dims) < 2:
        return tuple(dims)
    first, second = places or (0, 1)
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


def matrix_transpose(space: Space, node: Node) -> Value:
    """The last two dimensions change places."""
    *lead, rows, columns = space.of(node.all_input_nodes[0])
    return (*lead, columns, rows)


def reverse(space: Space, node: Node) -> Value:
    """`x.T`: the dimensions from last to first."""
    return tuple(reversed(space.of(arguments(node)["self"])))


def movedim(space: Space, node: Node) -> Value:
    """The named dimensions at their new places, the others in order around them."""
    bound = arguments(node)
    x = space.of(bound["self"])
    source, target = (_as_list(bound[name], len(x)) for name in ("source", "destination"))
    order: dict[int, int] = dict(zip(target, source, strict=True))
    rest = iter(place for place in range(len(x)) if place not in source)
    return tuple(x[order[place] if place in order else next(rest)] for place in range(len(x)))


def _as_list(places: int | list[int], rank: int) -> list[int]:
    return [place % rank for place in ([places] if isinstance(places, int) else places)]


def cat(space: Space, node: Node) -> Value:
    """Joined dimensions are laid end to end, the others are the same."""
    return _joined(space, node, arguments(node)["dim"])


def hstack(space: Space, node: Node) -> Value:
    """`cat` along the second dimension, or the only one."""
    return _joined(space, node, min(1, node.meta["val"].dim() - 1))


def vstack(space: Space, node: Node) -> Value:
    """`cat` along the first dimension; vectors become rows of a matrix, which is not described here."""
    return _joined(space, node, 0)


def _joined(space: Space, node: Node, dim: int) -> Value:
    operands = [space.of(source) for source in arguments(node)["tensors"]]
    operands = [dims for dims in operands if not (len(dims) == 1 and dims[0].size == 0)] or operands[:1]
    joined = dim % len(operands[0])
    for dims in operands[1:]:
        for place, (first, other) in enumerate(zip(operands[0], dims, strict=True)):
            if place != joined:
                space.unify(node, first, other)
    result = list(operands[0])
    result[joined] = concat(*(dims[joined] for dims in operands))
    return tuple(result)


def meshgrid(space: Space, node: Node) -> Value:
    """Vectors of M, N, .. positions: each is repeated to [M, N, ..], or to [N, M, ..]."""
    bound = arguments(node)
    axes = [(*space.of(source), space.unit(node))[0] for source in bound["tensors"]]
    if bound.get("indexing") == "xy":
        axes[:2] = reversed(axes[:2])
    return [tuple(axes)] * len(bound["tensors"])


def stack(space: Space, node: Node) -> Value:
    """A new dimension of as many positions as tensors; the tensors have the same dimensions."""
    bound = arguments(node)
    operands = [space.of(source) for source in bound["tensors"]]
    dims = list(space.broadcast(node, operands))
    place = bound["dim"] % (len(dims) + 1)
    return (*dims[:place], *space.fixed(node, [len(operands)], "a stack of tensors"), *dims[place:])


def split(space: Space, node: Node) -> Value:
    """`split`, `split_with_sizes`, `chunk`, `tensor_split`, `hsplit`: consecutive pieces, their sizes read
    off the results.
    """
    dims = space.of(node.all_input_nodes[0])
    place = split_place(node, len(dims))
    sizes = [hint(value.shape[place]) for value in node.meta["val"]]
    if sum(sizes) != dims[place].size:
        space.freeze(node, dims[place], "split into a varying number of pieces")
        pieces: list[Dim] = list(space.fixed(node, sizes, "split into a varying number of pieces"))
    else:
        pieces = space.split(node, dims[place], sizes)
    return [(*dims[:place], piece, *dims[place + 1 :]) for piece in pieces]


def split_place(node: Node, rank: int) -> int:
    """The dimension that a `split` cuts, or that the name says: `hsplit` the second, `vsplit`, `dsplit`."""
    named = arguments(node).get("dim")
    if named is None:
        named = {"hsplit": min(1, rank - 1), "vsplit": 0, "dsplit": 2}[str(node.target).split(".")[1]]
    return int(named) % rank


def unbind(space: Space, node: Node) -> Value:
    """One result per position of a dimension, which therefore stays whole."""
    bound = arguments(node)
    dims = space.of(bound["self"])
    place = bound["dim"] % len(dims)
    space.freeze(node, dims[place], "taken apart position by position")
    return [(*dims[:place], *dims[place + 1 :])] * len(node.meta["val"])


def select(space: Space, node: Node) -> Value:
    """One position of a dimension, which therefore stays whole."""
    bound = arguments(node)
    dims = space.of(bound["self"])
    place = bound["dim"] % len(dims)
    space.freeze(node, dims[place], "one position is selected")
    return (*dims[:place], *dims[place + 1 :])


def bounds(start: object, end: object, size: int) -> tuple[int, int] | None:
    """The half-open range of a slice as non-negative numbers, or None when it is symbolic."""
    if not isinstance(start, int | None) or not isinstance(end, int | None):
        return None
    first, last = 0 if start is None else start, size if end is None else end
    first, last = (min(max(value + size if value < 0 else value, 0), size) for value in (first, last))
    return first, max(first, last)


def slice_(space: Space, node: Node) -> Value:
    """x[start:end:step]: a piece of a concatenation, or the outer factor of a product when every k-th is
    taken.
    """
    bound = arguments(node)
    dims = list(space.of(bound["self"]))
    place, step = bound["dim"] % len(dims), bound["step"]
    size, length = dims[place].size, hints(node.meta["val"])[place]
    found = bounds(bound["start"], bound["end"], size)
    if found == (0, size) and step == 1 and not frozen(dims[place]):
        return tuple(dims)
    if frozen(dims[place]) or found is None or length == 0:
        space.freeze(node, dims[place], "sliced at run-time positions")
        dims[place] = space.fixed(node, [length], "a slice of positions that stay")[0]
    elif step == 1:
        dims[place] = space.split(node, dims[place], [found[0], length, size - found[1]])[1]
    elif size % step == 0 and found[0] < step and length == size // step:
        outer, inner = space.factor(node, dims[place], [size // step, step])
        space.freeze(node, inner, "every k-th position is taken")
        dims[place] = outer
    else:
        space.freeze(node, dims[place], "sliced with a step that does not divide it")
        dims[place] = space.fixed(node, [length], "a slice of positions that stay")[0]
    return tuple(dims)


def narrow(space: Space, node: Node) -> Value:
    """x[start : start + length] along one dimension."""
    bound = arguments(node)
    dims = list(space.of(bound["self"]))
    place, length, start = bound["dim"] % len(dims), bound["length"], bound["start"]
    if not isinstance(length, int) or not isinstance(start, int):
        space.freeze(node, dims[place], "sliced at run-time positions")
        dims[place] = space.fixed(node, [hints(node.meta["val"])[place]], "a slice of positions that stay")[0]
    else:
        size = dims[place].size
        start = start % size if size else 0
        dims[place] = space.split(node, dims[place], [start, length, size - start - length])[1]
    return tuple(dims)


def pad(space: Space, node: Node) -> Value:
    """Constant padding lays free positions around a dimension; other modes read the edge, which stays."""
    bound = arguments(node)
    dims = list(space.of(bound["self"]))
    constant = bound.get("mode", "constant") == "constant"
    amounts = bound["pad"]
    for pair in range(len(amounts) // 2):
        place = len(dims) - 1 - pair
        before, after = amounts[2 * pair], amounts[2 * pair + 1]
        if (before, after) == (0, 0):
            continue
        if constant and isinstance(before, int) and isinstance(after, int) and min(before, after) >= 0:
            dims[place] = concat(_blank(node, before), dims[place], _blank(node, after))
        else:
            space.freeze(node, dims[place], "padded from its own edge or cropped")
            size = hints(node.meta["val"])[place]
            dims[place] = space.fixed(node, [size], "padded from its own edge or cropped")[0]
    return tuple(dims)


def _blank(node: Node, size: int) -> Axis:
    return Axis(size, f"{node.name}.pad")


def repeat(space: Space, node: Node) -> Value:
    """Tiling: the count is an outer factor that stays."""
    source, repeats = arguments(node).values()
    x, rank = space.of(source), node.meta["val"].dim()
    padded = (*(space.unit(node) for _ in range(rank - len(x))), *x)
    counts = [count.meta["val"] if isinstance(count, Node) else count for count in repeats]
    counts = [1] * (rank - len(counts)) + counts
    return tuple(
        product(*space.fixed(node, [count], "a tiling"), dim)
        for count, dim in zip(counts, padded, strict=True)
    )


def repeat_interleave(space: Space, node: Node) -> Value:
    """Each position several times in a row: the count is an inner factor that stays."""
    bound = arguments(node)
    x, sizes = space.of(bound["self"]), hints(node.meta["val"])
    if not isinstance(bound["repeats"], int) or bound["dim"] is None:
        space.freeze(node, x, "repeated by data")
        return space.fixed(node, sizes, "repeated by data")
    dims: list[Dim] = list(x)
    place = bound["dim"] % len(dims)
    dims[place] = product(dims[place], *space.fixed(node, [bound["repeats"]], "repeats"))
    return tuple(dims)


def positions_matter(space: Space, node: Node) -> Value:
    """`flip`, `cumsum`, `sort`: the named dimensions are ordered and stay; the rest passes."""
    bound = arguments(node)
    x = space.of(node.all_input_nodes[0])
    named = bound.get("dims", bound.get("dim"))
    places = _as_list(named, len(x)) if named not in (None, []) else list(range(len(x)))
    space.freeze(node, [x[place] for place in places], "its order matters")
    assert bound.get("prepend") is None and bound.get("append") is None
    value = node.meta["val"]
    several = isinstance(value, tuple | list)
    results: list[Dims] = []
    for item in value if several else [value]:
        sizes = hints(item)
        ordered = space.fixed(node, sizes, "its order matters")
        results.append(tuple(ordered[p] if sizes[p] != d.size else d for p, d in enumerate(x)))
    return results if several else results[0]


def roll(space: Space, node: Node) -> Value:
    """The last `shift` positions come first: the pieces of a concatenation change places."""
    bound = arguments(node)
    dims = list(space.of(bound["self"]))
    if not bound["dims"] or not all(isinstance(shift, int) for shift in bound["shifts"]):
        return positions_matter(space, node)
    for shift, named in zip(bound["shifts"], bound["dims"], strict=True):
        place = named % len(dims)
        size = dims[place].size
        if not frozen(dims[place]):
            first, last = space.split(node, dims[place], rolled(size, shift))
            dims[place] = concat(last, first)
    return tuple(dims)


def rolled(size: int, shift: int) -> list[int]:
    """The sizes of the two pieces that a roll swaps."""
    return [size - shift % size, shift % size]


def diagonal(space: Space, node: Node) -> Value:
    """x[.., N, N] => y[.., N]: both go together; beside the main diagonal, or of unequal sizes, they stay."""
    bound = arguments(node)
    x = space.of(bound["self"])
    places = [bound["dim1"] % len(x), bound["dim2"] % len(x)]
    first, second = (x[place] for place in places)
    rest = [dim for place, dim in enumerate(x) if place not in places]
    if bound["offset"] == 0 and first.size == second.size:
        space.unify(node, first, second)
        return (*rest, first)
    space.freeze(node, (first, second), "positions compared with each other")
    return (*rest, *space.fixed(node, hints(node.meta["val"])[-1:], "a diagonal"))


def diag_embed(space: Space, node: Node) -> Value:
    """x[.., N] => y[.., N, N], zero but on the main diagonal; beside it, the positions stay."""
    bound = arguments(node)
    *rest, last = space.of(bound["self"])
    sizes = hints(node.meta["val"])
    first, second = sorted((bound["dim1"] % len(sizes), bound["dim2"] % len(sizes)))
    both: Dims = (last, last)
    if bound["offset"] != 0:
        space.freeze(node, last, "laid beside the main diagonal")
        both = space.fixed(node, (sizes[first], sizes[second]), "laid beside the main diagonal")
    rest.insert(first, both[0])
    rest.insert(second, both[1])
    return tuple(rest)


def view_as_complex(space: Space, node: Node) -> Value:
    """x[.., 2] => z[..]"""
    dims = space.of(node.all_input_nodes[0])
    space.freeze(node, dims[-1], "real and imaginary parts")
    return dims[:-1]


def view_as_real(space: Space, node: Node) -> Value:
    """z[..] => x[.., 2]"""
    return (*space.of(node.all_input_nodes[0]), *space.fixed(node, [2], "real and imaginary parts"))


def channel_shuffle(space: Space, node: Node) -> Value:
    """x[N, G*I, ..] => y[N, I*G, ..]: of a channel's two factors, the inner one comes first."""
    bound = arguments(node)
    x, groups = space.of(bound["self"]), bound["groups"]
    outer, inner = space.factor(node, x[1], [groups, x[1].size // groups])
    return (x[0], product(inner, outer), *x[2:])


def pixel_shuffle(space: Space, node: Node) -> Value:
    """x[.., C*r*r, H, W] => y[.., C, H*r, W*r]"""
    bound = arguments(node)
    x, square = space.of(bound["self"]), bound["upscale_factor"] ** 2
    channels, inner = space.factor(node, x[-3], [x[-3].size // square, square])
    space.freeze(node, (inner, *x[-2:]), "moved into space")
    sizes = hints(node.meta["val"])[-2:]
    return (*x[:-3], channels, *space.fixed(node, sizes, "spatial positions"))


def pixel_unshuffle(space: Space, node: Node) -> Value:
    """x[.., C, H*r, W*r] => y[.., C*r*r, H, W]"""
    bound = arguments(node)
    x, square = space.of(bound["self"]), bound["downscale_factor"] ** 2
    space.freeze(node, x[-2:], "moved into channels")
    channels = product(x[-3], *space.fixed(node, [square], "spatial positions"))
    return (*x[:-3], channels, *space.fixed(node, hints(node.meta["val"])[-2:], "spatial positions"))


def filled(space: Space, node: Node) -> Value:
    """`zeros`, `full`, ..: every static dimension is free, since a constant can be made in any size."""
    shape = node.meta["val"].shape
    return tuple(
        space.free(node, size)
        if isinstance(size, int)
        else space.fixed(node, [hint(size)], "varies at run time")[0]
        for size in shape
    )


def generated(space: Space, node: Node) -> Value:
    """`arange`, `eye`, random tensors: positions are counted, and stay."""
    space.freeze(
        node, [dim for source in tensor_arguments(node) for dim in space.of(source)], "counted positions"
    )
    return space.fixed(node, hints(node.meta["val"]), "counted positions")

"""The verbs of the dimension algebra: unify, split, factor, freeze.

Each verb only ever *binds* leaves to finer expressions or freezes them, so facts accumulate in any order and
nothing is taken back. What cannot be aligned is frozen with the reason, never guessed:

    unify(a, b)       leaf, x      bind
                      prod, prod   walk from both ends by common factors; what is left between is frozen
                      cat, cat     walk; a longer part is split to fit
                      prod, cat    split the product at the concatenation's boundaries
    split(d, sizes)   leaf: bind to a concatenation; cat: walk; product: split the outermost factor
    factor(d, sizes)  leaf: bind to a product; product: walk; cat: factor each part and unify the rest
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from fxcompress.axes.expression import Axis, Concat, Dim, Product, Reason, concat, find, leaves, product

_REASONS = 4
"""How many reasons an axis keeps: the batch of a deep network would gather one from every operator."""


class Unalignable(Exception):
    """Two structures whose boundaries do not fit; callers answer by freezing both."""


def freeze(dim: Dim, reason: Reason) -> None:
    """Say that no position of `dim` may be removed. The first few reasons are kept, repetition is dropped."""
    for axis in leaves(dim):
        if len(axis.reasons) < _REASONS and reason not in axis.reasons:
            axis.reasons.append(reason)


def normalise_over(dim: Dim, operator: str) -> None:
    """Record that `operator` computes statistics over `dim`: removal there is allowed but changes them."""
    for axis in leaves(dim):
        axis.statistics[operator] = None


def bind(axis: Axis, dim: Dim) -> None:
    """Let `axis` mean `dim` from now on; its reasons and statistics pass to the leaves of `dim`."""
    dim = find(dim)
    if dim is axis:
        return
    if any(leaf is axis for leaf in leaves(dim)):
        freeze(dim, Reason("the axis would have to contain itself"))
        return
    axis.forward = dim
    for reason in axis.reasons:
        freeze(dim, reason)
    for operator in axis.statistics:
        normalise_over(dim, operator)


def unify(a: Dim, b: Dim, reason: Reason | None = None) -> None:
    """Say that `a` and `b` index the same things. `reason` is given to both if they cannot be aligned."""
    a, b = find(a), find(b)
    if a is b:
        return
    try:
        if a.size != b.size:
            raise Unalignable(f"{a.size} and {b.size} positions")
        _unify(a, b, reason)
    except Unalignable as fault:
        why = blamed(f"structures that do not align: {fault}", reason)
        freeze(a, why)
        freeze(b, why)


def blamed(text: str, culprit: Reason | None) -> Reason:
    """A reason with a text of its own and the operator of another."""
    return Reason(text) if culprit is None else Reason(text, culprit.operator, culprit.source)


def _unify(a: Dim, b: Dim, reason: Reason | None) -> None:
    if isinstance(a, Axis) and isinstance(b, Axis):
        # The axis that more has been said of stays: a residual stream meets a new parameter in every block.
        bind(*((a, b) if len(b.statistics) > len(a.statistics) else (b, a)))
    elif isinstance(a, Axis):
        bind(a, b)
    elif isinstance(b, Axis):
        bind(b, a)
    elif isinstance(a, Product) and isinstance(b, Product):
        _unify_products(a, b, reason)
    elif isinstance(a, Concat) and isinstance(b, Concat):
        _unify_concats(a, b, reason)
    else:
        whole, parts = (a, b) if isinstance(b, Concat) else (b, a)
        assert isinstance(parts, Concat)
        for piece, part in zip(split(whole, [part.size for part in parts.parts]), parts.parts, strict=True):
            unify(piece, part, reason)


def _unify_products(a: Product, b: Product, reason: Reason | None) -> None:
    """Pair what both have in common, from the outermost factor on and then from the innermost; what is left
    between has no boundary in common, and stays whole.
    """
    left, right = list(a.factors), list(b.factors)
    while left and right and (shared := gcd(left[0].size, right[0].size)) > 1:
        x, *left[:1] = _parts(left[0], shared, left[0].size // shared, reason)
        y, *right[:1] = _parts(right[0], shared, right[0].size // shared, reason)
        unify(x, y, reason)
    while left and right and (shared := gcd(left[-1].size, right[-1].size)) > 1:
        *left[-1:], x = _parts(left[-1], left[-1].size // shared, shared, reason)
        *right[-1:], y = _parts(right[-1], right[-1].size // shared, shared, reason)
        unify(x, y, reason)
    if left and right:
        sizes = " and ".join(" x ".join(str(dim.size) for dim in factors) for factors in (left, right))
        for dim in (*left, *right):
            freeze(dim, blamed(f"structures that do not align: factors of {sizes}", reason))


def _parts(dim: Dim, outer: int, inner: int, reason: Reason | None) -> list[Dim]:
    """The two factors of a dimension, one where the other is 1."""
    return [dim] if 1 in (outer, inner) else factor(dim, [outer, inner], reason)


def _unify_concats(a: Concat, b: Concat, reason: Reason | None) -> None:
    left, right = list(a.parts), list(b.parts)
    while left and right:
        x, y = find(left.pop(0)), find(right.pop(0))
        if x.size > y.size:
            x, rest = split(x, [y.size, x.size - y.size])
            left.insert(0, rest)
        elif y.size > x.size:
            y, rest = split(y, [x.size, y.size - x.size])
            right.insert(0, rest)
        unify(x, y, reason)


def _refined(axis: Axis, sizes: Sequence[int], sign: str) -> list[Dim]:
    return [Axis(size, f"{axis.name}{sign}{place}" if axis.name else "") for place, size in enumerate(sizes)]


def split(dim: Dim, sizes: Sequence[int]) -> list[Dim]:
    """Cut `dim` into consecutive pieces of the given sizes (which sum to its size; zero gives an empty
    piece).
    """
    dim = find(dim)
    assert sum(sizes) == dim.size, (dim, sizes)
    solid = [size for size in sizes if size]
    if len(solid) == 1:
        pieces: list[Dim] = [dim]
    elif isinstance(dim, Axis):
        pieces = _refined(dim, solid, "+")
        bind(dim, concat(*pieces))
    elif isinstance(dim, Concat):
        pieces = _split_concat(dim, solid)
    else:
        inner = prod(factor.size for factor in dim.factors[1:])
        if any(size % inner for size in solid):
            raise Unalignable(f"pieces of {solid} in blocks of {inner}")
        outers = split(dim.factors[0], [size // inner for size in solid])
        pieces = [product(outer, *dim.factors[1:]) for outer in outers]
    queue = iter(pieces)
    return [next(queue) if size else Axis(0) for size in sizes]


def _split_concat(dim: Concat, sizes: Sequence[int]) -> list[Dim]:
    queue = list(dim.parts)
    pieces: list[Dim] = []
    for size in sizes:
        taken: list[Dim] = []
        missing = size
        while missing:
            part = find(queue.pop(0))
            if part.size > missing:
                part, rest = split(part, [missing, part.size - missing])
                queue.insert(0, rest)
            taken.append(part)
            missing -= part.size
        pieces.append(concat(*taken))
    return pieces


def factor(dim: Dim, sizes: Sequence[int], reason: Reason | None = None) -> list[Dim]:
    """Read `dim` as a row-major product of the given sizes, outermost first; of one position: a unit axis.

    `reason` names the operator to blame where parts have to be frozen.
    """
    dim = find(dim)
    assert prod(sizes) == dim.size, (dim, sizes)
    solid = [size for size in sizes if size != 1]
    if len(solid) <= 1:
        factors: list[Dim] = [dim] if solid else []
    elif isinstance(dim, Axis):
        factors = _refined(dim, solid, "*")
        bind(dim, product(*factors))
    elif isinstance(dim, Product):
        factors = _factor_product(dim, solid, reason)
    else:
        factors = _factor_concat(dim, solid, reason)
    queue = iter(factors)
    return [next(queue) if size != 1 else Axis(1) for size in sizes]


def _factor_product(dim: Product, sizes: Sequence[int], reason: Reason | None) -> list[Dim]:
    queue = list(dim.factors)
    result: list[Dim] = []
    for size in sizes:
        taken: list[Dim] = []
        missing = size
        while missing > 1:
            part = find(queue.pop(0))
            if part.size > missing:
                if part.size % missing:
                    return _read_across(dim, sizes, reason)
                part, rest = factor(part, [missing, part.size // missing], reason)
                queue.insert(0, rest)
            elif missing % part.size:
                return _read_across(dim, sizes, reason)
            taken.append(part)
            missing //= part.size
        result.append(product(*taken))
    return result


def _read_across(dim: Product, sizes: Sequence[int], reason: Reason | None) -> list[Dim]:
    """Factors whose boundaries are not all those of `dim`: only what both have at their ends may go."""
    factors: list[Dim] = [Axis(size) for size in sizes]
    unify(dim, product(*factors), reason)
    return factors


def _factor_concat(dim: Concat, sizes: Sequence[int], reason: Reason | None) -> list[Dim]:
    outer, *rest = sizes
    block = prod(rest)
    if all(part.size % block == 0 for part in dim.parts):
        rows = [factor(part, [part.size // block, *rest], reason) for part in dim.parts]
        for row in rows[1:]:
            for first, other in zip(rows[0][1:], row[1:], strict=True):
                unify(first, other, reason)
        return [concat(*(row[0] for row in rows)), *(find(inner) for inner in rows[0][1:])]
    # The parts straddle the blocks (channel shuffle): every block must keep the same positions.
    blocks = split(dim, [block] * outer)
    for other in blocks[1:]:
        unify(blocks[0], other, reason)
    steps = Axis(outer, reasons=[blamed("blocks that straddle a concatenation", reason)])
    return [steps, *factor(blocks[0], rest, reason)]

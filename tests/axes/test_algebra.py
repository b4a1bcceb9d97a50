"""The verbs: what each does on examples, and what holds after any sequence of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.axes.algebra import Unalignable, bind, factor, freeze, normalise_over, split, unify
from fxcompress.axes.expression import Axis, Concat, Dim, Reason, concat, find, frozen, leaves, product
from fxcompress.axes.positions import kept, occurrences, width
from tests.axes import twin

NO = Reason("no")


def shape(dim: Dim) -> object:
    """A dimension as nested lists (concatenations) and tuples (products) of sizes."""
    dim = find(dim)
    if isinstance(dim, Axis):
        return dim.size
    if isinstance(dim, Concat):
        return [shape(part) for part in dim.parts]
    return tuple(shape(factor) for factor in dim.factors)


def test_bound_axes_are_one() -> None:
    a, b = Axis(4, "a"), Axis(4, "b")
    unify(a, b)
    assert find(b) is find(a) is a


def test_reasons_and_statistics_pass_to_what_an_axis_becomes() -> None:
    a, b, c = Axis(6), Axis(2), Axis(4)
    freeze(a, NO)
    normalise_over(a, "norm")
    bind(a, concat(b, c))
    assert b.reasons == c.reasons == [NO]
    assert list(b.statistics) == list(c.statistics) == ["norm"]
    freeze(a, NO)
    assert b.reasons == [NO]


def test_freezing_a_later_name_freezes_the_axis() -> None:
    a, b = Axis(4), Axis(4)
    unify(a, b)
    freeze(b, NO)
    assert a.frozen


def test_an_axis_cannot_contain_itself() -> None:
    a = Axis(4)
    bind(a, Concat((a, Axis(0))))
    assert a.forward is None
    assert a.frozen


def test_sizes_that_differ_are_frozen() -> None:
    a, b = Axis(4), Axis(5)
    unify(a, b, Reason("told", "node", "file.py:1"))
    assert a.reasons == b.reasons
    assert str(a.reasons[0]) == "structures that do not align: 4 and 5 positions (at node)"
    assert a.reasons[0].source == "file.py:1"


def test_split_refines_an_axis_once() -> None:
    a = Axis(6, "a")
    first, second = split(a, [2, 4])
    assert shape(a) == [2, 4]
    assert split(a, [2, 4]) == [first, second]
    assert [piece.size for piece in split(a, [0, 3, 3])] == [0, 3, 3]
    assert shape(a) == [2, 1, 3]
    assert split(first, [2, 0])[0] is first


def test_split_of_a_product_cuts_its_outer_factor() -> None:
    a, b = Axis(4), Axis(3)
    pieces = split(product(a, b), [3, 9])
    assert [shape(piece) for piece in pieces] == [3, (3, 3)]
    assert shape(a) == [1, 3]
    with pytest.raises(Unalignable):
        split(product(Axis(4), Axis(3)), [4, 8])


def test_factor_refines_an_axis_once() -> None:
    a = Axis(12, "a")
    outer, inner = factor(a, [3, 4])
    assert shape(a) == (3, 4)
    assert factor(a, [3, 1, 4])[::2] == [outer, inner]
    assert [found.size for found in factor(a, [3, 2, 2])] == [3, 2, 2]
    assert factor(Axis(1), [1, 1])[0].size == 1


def test_factors_that_straddle_keep_what_is_common_at_the_ends() -> None:
    three, eight = factor(product(Axis(4), Axis(6)), [3, 8])
    assert shape(three) == 3
    assert shape(eight) == (4, 2)
    assert [bool(axis.reasons) for axis in (*leaves(three), *leaves(eight))] == [True, True, False]
    assert [shape(found) for found in factor(product(Axis(2), Axis(6)), [4, 3])] == [(2, 2), 3]


def test_factor_of_a_concatenation_ties_the_inner_factors() -> None:
    a, b = Axis(4), Axis(8)
    outer, inner = factor(concat(a, b), [6, 2])
    assert shape(outer) == [2, 4]
    assert shape(a) == (2, 2)
    assert find(find(b).factors[1]) is find(inner) is find(find(a).factors[1])


def test_blocks_that_straddle_a_concatenation_are_tied() -> None:
    """Channel shuffle of `cat(2, 4)` in blocks of three: two and one, one and two."""
    a, b = Axis(2), Axis(4)
    outer, inner = factor(concat(a, b), [2, 3])
    assert find(outer).frozen
    assert inner.size == 3
    assert len({id(axis) for axis in leaves(concat(a, b))}) == len(list(leaves(inner)))


def test_products_are_aligned_from_the_outermost_factor() -> None:
    a, b, c, d = Axis(2), Axis(6), Axis(4), Axis(3)
    unify(product(a, b), product(c, d))
    assert shape(product(a, b)) == shape(product(c, d)) == (2, 2, 3)


def test_products_without_a_common_factor_are_frozen() -> None:
    left, right = product(Axis(4), Axis(9)), product(Axis(9), Axis(4))
    unify(left, right, NO)
    assert frozen(left)
    assert frozen(right)


def test_products_share_what_is_common_at_both_ends() -> None:
    """Four groups of six and six groups of four: two outermost halves and innermost pairs are in both."""
    left, right = product(Axis(4), Axis(6)), product(Axis(6), Axis(4))
    unify(left, right, NO)
    assert shape(left) == (2, 2, 3, 2)
    assert shape(right) == (2, 3, 2, 2)
    ours, theirs = list(leaves(left)), list(leaves(right))
    assert ours[0] is theirs[0]
    assert ours[-1] is theirs[-1]
    assert [bool(axis.reasons) for axis in ours] == [False, True, True, False]
    assert [bool(axis.reasons) for axis in theirs] == [False, True, True, False]


def test_concatenations_are_cut_at_every_boundary() -> None:
    a, b, c, d = Axis(3), Axis(5), Axis(6), Axis(2)
    unify(concat(a, b), concat(c, d))
    assert shape(concat(a, b)) == [3, 3, 2] == shape(concat(c, d))


def test_a_product_meets_a_concatenation() -> None:
    """Eight in blocks of two, beside three parts: the blocks go whole."""
    heads, inner, parts = Axis(4), Axis(2), [Axis(2), Axis(4), Axis(2)]
    unify(concat(*parts), product(heads, inner))
    assert shape(heads) == [1, 2, 1]
    assert [shape(part) for part in parts] == [2, (2, 2), 2]
    assert find(parts[0]) is find(inner)
    odd = concat(Axis(3), Axis(5))
    unify(odd, product(Axis(4), Axis(2)), NO)
    assert frozen(odd)


def test_the_two_halves_of_a_rotation_go_together() -> None:
    a, b = Axis(4), Axis(4)
    unify(concat(a, b), concat(b, a))
    assert find(a) is find(b)


def test_unequal_halves_that_change_places_end_in_their_common_divisor() -> None:
    a, b = Axis(6), Axis(4)
    unify(concat(a, b), concat(b, a))
    assert {axis.size for axis in leaves(concat(a, b))} == {2}
    assert len(set(map(id, leaves(concat(a, b))))) == 1


def test_factors_that_change_places_become_powers_of_one_axis() -> None:
    rows, columns = Axis(4), Axis(8)
    unify(product(rows, columns), product(columns, rows))
    assert len(set(map(id, leaves(product(rows, columns))))) == 1
    assert rows.size == 4


SIZES = (1, 2, 3, 4, 6, 8, 12)
Move = tuple[str, int, int, int]


def moves() -> st.SearchStrategy[list[Move]]:
    """Instructions on a growing list of dimensions: verb, which two, and a number to divide by."""
    verb = st.sampled_from(("axis", "cat", "product", "unify", "split", "factor", "freeze"))
    number = st.integers(0, 11)
    return st.lists(st.tuples(verb, number, number, number), min_size=4, max_size=18)


def perform(moves: list[Move]) -> tuple[list[Dim], list[tuple[Dim, Dim]], list[Dim]]:
    """Every dimension made, the pairs that were unified, and what was frozen on the way."""
    made: list[Dim] = [Axis(12, "a"), Axis(12, "b"), Axis(6, "c"), Axis(4, "d")]
    pairs: list[tuple[Dim, Dim]] = []
    cold: list[Dim] = []
    for verb, i, j, k in moves:
        x, y = made[i % len(made)], made[j % len(made)]
        if verb == "axis":
            made.append(Axis(SIZES[i % len(SIZES)], f"x{len(made)}"))
        elif verb == "freeze":
            freeze(x, NO)
            cold.append(x)
        elif verb == "unify":
            if x.size == y.size:
                unify(x, y, NO)
                pairs.append((x, y))
        elif x.size + y.size <= 48 and verb == "cat":
            made.append(concat(x, y))
        elif x.size * y.size <= 48 and verb == "product":
            made.append(product(x, y))
        elif verb in ("split", "factor"):
            made.extend(_cut(x, verb, k, pairs))
    return made, pairs, cold


def _cut(dim: Dim, verb: str, k: int, pairs: list[tuple[Dim, Dim]]) -> list[Dim]:
    """Pieces or factors of a dimension, frozen where they do not fit."""
    first = 1 + k % dim.size
    if verb == "factor":
        first = next(size for size in range(first, 0, -1) if dim.size % size == 0)
    try:
        if verb == "split":
            pieces = split(dim, [first, dim.size - first])
            pairs.append((dim, concat(*pieces)))
        else:
            pieces = factor(dim, [first, dim.size // first])
            pairs.append((dim, product(*pieces)))
    except Unalignable:
        freeze(dim, NO)
        return []
    return [piece for piece in pieces if piece.size]


def choose(made: list[Dim], seed: int) -> dict[Axis, np.ndarray]:
    """Random indices for every axis that may shrink."""
    generator = np.random.default_rng(seed)
    free = dict.fromkeys(axis for dim in made for axis in leaves(dim) if not axis.frozen)
    chosen = {}
    for axis in free:
        count = int(generator.integers(1, axis.size + 1))
        chosen[axis] = np.sort(generator.permutation(axis.size)[:count])
    return chosen


@given(moves())
def test_sizes_never_change(moves: list[Move]) -> None:
    made, pairs, _ = perform(moves)
    for dim in made:
        assert find(dim).size == dim.size == len(twin.positions(dim))
    for left, right in pairs:
        assert left.size == right.size


@given(moves(), st.integers(0, 3))
def test_what_stays_is_what_slicing_leaf_by_leaf_gives(moves: list[Move], seed: int) -> None:
    made, _, _ = perform(moves)
    indices = choose(made, seed)
    widths = {axis: len(stay) for axis, stay in indices.items()}
    for dim in made:
        assert list(kept(dim, indices)) == twin.kept(dim, indices)
        assert width(dim, widths) == len(kept(dim, indices)) >= 1


@given(moves(), st.integers(0, 3))
def test_unified_dimensions_keep_the_same_positions(moves: list[Move], seed: int) -> None:
    made, pairs, _ = perform(moves)
    indices = choose(made, seed)
    for left, right in pairs:
        assert list(kept(left, indices)) == list(kept(right, indices))


@given(moves(), st.integers(0, 3))
def test_nothing_frozen_goes(moves: list[Move], seed: int) -> None:
    made, _, cold = perform(moves)
    indices = choose(made, seed)
    for dim in cold:
        assert frozen(dim)
        assert len(kept(dim, indices)) == dim.size


@given(moves())
def test_occurrences_are_the_ids_of_the_twin(moves: list[Move]) -> None:
    made, _, _ = perform(moves)
    for dim in made:
        ids = twin.positions(dim)
        for axis in dict.fromkeys(leaves(dim)):
            found: list[set[int]] = [set() for _ in ids]
            for labels in occurrences(dim, axis):
                for place, label in enumerate(labels):
                    if label >= 0:
                        found[place].add(int(label))
            assert found == [{index for leaf, index in one if leaf == id(axis)} for one in ids]


@given(moves())
def test_saying_it_again_changes_nothing(moves: list[Move]) -> None:
    """Unifying the same pairs a second time binds no axis and freezes nothing new."""
    made, pairs, _ = perform(moves)
    before = [shape(dim) for dim in made]
    for left, right in pairs:
        unify(left, right, NO)
    assert [shape(dim) for dim in made] == before

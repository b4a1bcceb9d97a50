"""Expressions and the reading of positions off them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fxcompress.axes.expression import Axis, Concat, Product, Reason, concat, find, frozen, leaves, product
from fxcompress.axes.positions import kept, multiplicities, occurrences, width
from tests.axes import twin


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_nesting_is_flattened() -> None:
    a, b, c = Axis(2), Axis(3), Axis(4)
    assert concat(concat(a, b), c).parts == (a, b, c)
    assert product(a, product(b, c)).factors == (a, b, c)
    assert product(a, concat(b, c)).factors[1].parts == (b, c)


def test_empty_parts_and_single_factors_vanish() -> None:
    a, one, none = Axis(2), Axis(1), Axis(0)
    assert concat(none, a, none) is a
    assert product(one, a, one) is a
    assert product(one, one) is one
    assert product().size == 1
    assert concat().size == 0


def test_forwarding_is_followed_and_flattened() -> None:
    a, b, c, d = Axis(2), Axis(4), Axis(2), Axis(2)
    joined = concat(b, c)
    b.forward = concat(a, d)
    settled = find(joined)
    assert settled.parts == (a, d, c)
    assert joined.size == 6
    assert find(settled) is settled


def test_leaves_come_in_order_and_as_often_as_they_occur() -> None:
    a, b = Axis(2), Axis(3)
    assert list(leaves(concat(a, product(b, a), a))) == [a, b, a, a]


def test_a_dimension_is_frozen_when_all_of_it_is() -> None:
    a, b = Axis(2), Axis(3, reasons=[Reason("no")])
    assert frozen(b)
    assert not frozen(concat(a, b))
    assert frozen(Axis(1))
    assert frozen(product(b, Axis(1)))


def test_printing_says_structure_and_frozen_leaves() -> None:
    dim = concat(Axis(2, "a"), product(Axis(3, "b"), Axis(4, "c", reasons=[Reason("no", "conv")])))
    assert repr(dim) == "Concat(a:2, Product(b:3, c:4!))"
    assert str(Reason("no", "conv")) == "no (at conv)"


@pytest.mark.parametrize("by_hand", [kept, twin.kept], ids=["kept", "twin"])
def test_kept_positions(by_hand: object) -> None:
    """Offsets in a concatenation; row-major in a product."""
    a, b = Axis(3), Axis(2)
    indices = {a: array(0, 2)}
    assert list(by_hand(a, indices)) == [0, 2]
    assert list(by_hand(concat(b, a, b), indices)) == [0, 1, 2, 4, 5, 6]
    assert list(by_hand(product(a, b), indices)) == [0, 1, 4, 5]
    assert list(by_hand(product(b, a), indices)) == [0, 2, 3, 5]
    assert list(by_hand(product(a, a), indices)) == [0, 2, 6, 8]


def test_widths_follow_the_leaves() -> None:
    a, b = Axis(3), Axis(2)
    widths = {a: 2}
    assert width(concat(a, b, a), widths) == 6
    assert width(product(a, a, b), widths) == 8
    assert width(b, widths) == 2


def test_occurrences_label_every_position_once_per_occurrence() -> None:
    a, b = Axis(3), Axis(2)
    assert [list(row) for row in occurrences(concat(a, b, a), a)] == [
        [0, 1, 2, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, 0, 1, 2],
    ]
    assert [list(row) for row in occurrences(product(b, a, b), a)] == [[0, 0, 1, 1, 2, 2] * 2]
    assert [list(row) for row in occurrences(product(a, a), a)] == [
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
        [0, 1, 2, 0, 1, 2, 0, 1, 2],
    ]
    assert occurrences(b, a) == []


def test_multiplicities_count_the_positions_of_one_index() -> None:
    a, b = Axis(3), Axis(2)
    for dim in (a, concat(a, b, a), product(b, a, b), product(a, a), concat(product(a, b), b)):
        assert multiplicities(dim) == {
            axis: sum(int((labels == 0).sum()) for labels in occurrences(dim, axis))
            for axis in set(leaves(dim))
        }


def test_types_are_what_they_say() -> None:
    assert isinstance(concat(Axis(2), Axis(3)), Concat)
    assert isinstance(product(Axis(2), Axis(3)), Product)


def test_long_chains_of_bindings_are_followed_without_recursion() -> None:
    axes = [Axis(4) for _ in range(20_000)]
    for axis, following in pairwise(axes):
        axis.forward = following
    assert find(axes[0]) is axes[-1]
    assert axes[7].forward is axes[-1]

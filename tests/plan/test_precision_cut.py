"""The cut is the least additive cost there is, on every small graph, and conversions are paid by tensor."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.analysis.precision_prices import Crossing, PrecisionPrices, Vertex
from fxcompress.plan.precision_cut import cut, frontier, mixture

MS = st.integers(0, 40).map(lambda tenths: tenths / 8)


@st.composite
def random_prices(draw: st.DrawFn) -> PrecisionPrices:
    """Up to seven operators, each of which reads some of the tensors before it; any may lack an integer
    kernel, be an output, or hand out floats whatever it computes in.
    """
    count = draw(st.integers(1, 7))
    names = [f"v{place}" for place in range(count)]
    vertices = tuple(
        Vertex(name, (name,), draw(MS), draw(st.one_of(MS, MS, st.just(math.inf))), draw(MS))
        for name in names
    )
    crossings = []
    for place in range(-1, count):
        later = [*names[place + 1 :], ""]
        readers = draw(st.lists(st.sampled_from(later), max_size=3, unique=True))
        maker = None if place < 0 or draw(st.integers(0, 5)) == 0 else names[place]
        if readers:
            crossings.append(Crossing(f"t{place}", maker, tuple(readers), draw(MS), draw(MS)))
    return PrecisionPrices(vertices, tuple(crossings))


def least(prices: PrecisionPrices, weight: float) -> float:
    """The least cost, by trying every choice."""
    names = [vertex.name for vertex in prices.vertices if math.isfinite(vertex.int8_ms)]
    choices = itertools.chain.from_iterable(
        itertools.combinations(names, size) for size in range(len(names) + 1)
    )
    return min(prices.ms(set(choice)) + weight * prices.error(set(choice)) for choice in choices)


@given(random_prices(), st.sampled_from([0.0, 0.25, 3.0]))
def test_the_cut_is_the_least_cost_of_all_choices(prices: PrecisionPrices, weight: float) -> None:
    chosen = cut(prices, weight)
    cost = prices.ms(chosen) + weight * prices.error(chosen)
    assert cost == pytest.approx(least(prices, weight), abs=1e-6)


@given(random_prices())
def test_the_frontier_trades_time_for_error_and_starts_at_the_fastest(prices: PrecisionPrices) -> None:
    found = frontier(prices)
    assert found[0].ms == pytest.approx(least(prices, 0.0), abs=1e-6)
    for faster, finer in itertools.pairwise(found):
        assert faster.ms <= finer.ms + 1e-6
        assert faster.error > finer.error


@given(random_prices(), st.lists(MS, min_size=1, max_size=8))
def test_whatever_an_error_costs_the_best_choice_is_on_the_frontier(
    prices: PrecisionPrices, weights: list[float]
) -> None:
    found = frontier(prices)
    for weight in weights:
        best = min(item.ms + weight * item.error for item in found)
        assert best == pytest.approx(least(prices, weight), abs=1e-6)


def fan(readers: int) -> PrecisionPrices:
    """A float operator whose tensor feeds several that are half a millisecond faster in int8 each."""
    names = [f"r{place}" for place in range(readers)]
    vertices = [Vertex("maker", ("maker",), 1.0), *(Vertex(name, (name,), 1.0, 0.5) for name in names)]
    return PrecisionPrices(tuple(vertices), (Crossing("t", "maker", tuple(names), 1.2, 1.2),))


def test_a_conversion_that_three_read_is_paid_once() -> None:
    prices = fan(3)
    chosen = cut(prices)
    assert chosen == {"r0", "r1", "r2"}, (
        "1.2 ms once are less than the 1.5 ms saved; three times they are not"
    )
    assert prices.ms(chosen) == pytest.approx(1.0 + 1.5 + 1.2)
    assert cut(fan(2)) == frozenset(), "for two readers it does not pay"


def test_a_dequantization_that_three_read_is_paid_once() -> None:
    readers = tuple(Vertex(f"r{place}", (f"r{place}",), 1.0) for place in range(3))
    crossing = Crossing("t", "maker", ("r0", "r1", "r2"), 1.0, 0.9)
    prices = PrecisionPrices((Vertex("maker", ("maker",), 2.0, 1.0), *readers), (crossing,))
    assert cut(prices) == {"maker"}
    assert prices.ms({"maker"}) == pytest.approx(1.0 + 3.0 + 0.9)


def test_outputs_are_float() -> None:
    prices = PrecisionPrices(
        (Vertex("only", ("only",), 2.0, 1.0),), (Crossing("t", "only", ("",), 0.0, 1.5),)
    )
    assert cut(prices) == frozenset()


def test_what_is_made_in_float_by_an_integer_kernel_costs_no_dequantization() -> None:
    vertices = (Vertex("product", ("product",), 2.0, 1.0), Vertex("next", ("next",), 2.0, 1.0))
    prices = PrecisionPrices(vertices, (Crossing("t", None, ("next",), 0.4, 9.0),))
    assert cut(prices) == {"product", "next"}
    assert prices.ms({"product", "next"}) == pytest.approx(2.4)


def test_ties_stay_in_float_and_dearer_conversions_too() -> None:
    assert cut(PrecisionPrices((Vertex("v", ("v",), 1.0, 1.0),), ())) == frozenset()
    assert cut(fan(3).scaled(2.0)) == frozenset()


def test_a_choice_names_all_operators_of_its_vertices() -> None:
    prices = PrecisionPrices((Vertex("c", ("c", "relu"), 2.0, 1.0, 0.5), Vertex("d", ("d",), 1.0)), ())
    assert prices.operators(cut(prices)) == {"c", "relu"}
    assert mixture(prices, {"c"}).error == 0.5

"""The precision of every operator as a minimum cut: exact for additive prices, and instant.

    source = float                                              sink = int8

A vertex on the source's side runs in float and pays the edge to the sink, its float time; on the sink's side
it pays the edge from the source, its int8 time. Each tensor has two vertices of its own, so that a conversion
is paid once however many read it: one that is on the sink's side as soon as one reader is (the edge from the
maker to it is the price of quantizing), one that is on the source's side as soon as one reader is (the edge
from it to the maker is the price of dequantizing).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import networkx as nx

from fxcompress.analysis.precision_prices import PrecisionPrices

_FLOAT, _INT8 = "float side", "int8 side"
_SMALLEST = 1e-9
"""Milliseconds; networkx takes an edge of no capacity for none, which changes nothing but ties."""
CUTS = 24
"""How many weights of the error a sweep tries at most."""


@dataclass(frozen=True)
class Mixture:
    """One way to choose: the vertices in int8, predicted milliseconds, predicted error."""

    integers: frozenset[str]
    ms: float
    error: float


def cut(prices: PrecisionPrices, error_weight: float = 0.0) -> frozenset[str]:
    """Return the vertices to run in int8, so that `ms + error_weight * error` is the least there is.

    Where both precisions cost the same, an operator stays in float.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from((_FLOAT, _INT8))
    for vertex in prices.vertices:
        if math.isinf(vertex.int8_ms):
            graph.add_edge(_FLOAT, vertex.name)  # without a capacity: infinite
        else:
            price = vertex.int8_ms + error_weight * vertex.error + _SMALLEST
            graph.add_edge(_FLOAT, vertex.name, capacity=price)
        graph.add_edge(vertex.name, _INT8, capacity=vertex.float_ms)
    for item in prices.crossings:
        maker = _FLOAT if item.maker is None else item.maker
        down, up = f"{item.name} quantized", f"{item.name} dequantized"
        graph.add_edge(maker, down, capacity=item.quantize_ms)
        graph.add_edge(up, maker, capacity=item.dequantize_ms)
        for reader in item.readers:
            graph.add_edge(down, reader or _FLOAT)
            graph.add_edge(reader or _FLOAT, up)
    _, (_, integers) = nx.minimum_cut(graph, _FLOAT, _INT8)
    return frozenset(vertex.name for vertex in prices.vertices if vertex.name in integers)


def mixture(prices: PrecisionPrices, integers: AbstractSet[str]) -> Mixture:
    """What prices say of a choice."""
    return Mixture(frozenset(integers), prices.ms(integers), prices.error(integers))


def frontier(prices: PrecisionPrices) -> tuple[Mixture, ...]:
    """From the fastest mixture to float: the corners of the convex hull of all choices, in time and error.

    No choice is better than a corner in both. Between two neighbours lies another if the cut finds one at the
    weight of the error at which both cost the same (the dichotomic search of Aneja and Nair, "Bicriteria
    transportation problem", 1979); the largest gaps in error come first, `CUTS` in all.
    """
    found = [mixture(prices, cut(prices)), mixture(prices, frozenset())]
    gaps = [(found[0].error, 0, (found[0], found[1]))]
    for count in range(1, CUTS):
        if not gaps:
            break
        _, _, (fast, fine) = heapq.heappop(gaps)
        item = _between(prices, fast, fine)
        if item is None:
            continue
        found.append(item)
        for place, ends in enumerate(((fast, item), (item, fine))):
            heapq.heappush(gaps, (ends[1].error - ends[0].error, 2 * count + place, ends))
    return _undominated(found)


def _between(prices: PrecisionPrices, fast: Mixture, fine: Mixture) -> Mixture | None:
    """The corner of the hull that lies furthest beyond the line through two others, if there is one."""
    slower, closer = fine.ms - fast.ms, fast.error - fine.error
    if slower <= _SMALLEST or closer <= 0.0:
        return None
    weight = slower / closer
    item = mixture(prices, cut(prices, weight))
    beyond = fast.ms + weight * fast.error - item.ms - weight * item.error
    return item if beyond > _SMALLEST * len(prices.vertices) else None


def _undominated(found: Iterable[Mixture]) -> tuple[Mixture, ...]:
    kept: list[Mixture] = []
    for item in sorted(found, key=lambda item: (item.ms, item.error)):
        if not kept or item.error < kept[-1].error:
            kept.append(item)
    return tuple(kept)

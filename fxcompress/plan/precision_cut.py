"""The precision of every operator as a minimum cut: exact for additive prices, and instant.

    source = float                                              sink = int8

A vertex on the source's side runs in float and pays the edge to the sink, its float time; on the sink's side
it pays the edge from the source, its int8 time. Each tensor has two vertices of its own, so that a conversion
is paid once however many read it: one that is on the sink's side as soon as one reader is (the edge from the
maker to it is the price of quantizing), one that is on the source's side as soon as one reader is (the edge
from it to the maker is the price of dequantizing).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import networkx as nx

from fxcompress.analysis.precision_prices import PrecisionPrices

_FLOAT, _INT8 = "float side", "int8 side"
_SMALLEST = 1e-9
"""Milliseconds; networkx takes an edge of no capacity for none, which changes nothing but ties."""
STEPS = 12
"""How many weights of the error a sweep tries."""


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
    """From the fastest mixture to the most accurate: no other cut is better in both time and error."""
    found = dict.fromkeys(_swept(prices))
    kept: list[Mixture] = []
    for item in sorted(
        (mixture(prices, integers) for integers in found), key=lambda item: (item.ms, item.error)
    ):
        if not kept or item.error < kept[-1].error:
            kept.append(item)
    return tuple(kept)


def _swept(prices: PrecisionPrices) -> Iterator[frozenset[str]]:
    """Cuts with growing weights of the error, until everything is float."""
    fastest = cut(prices)
    yield fastest
    error = prices.error(fastest)
    if not error:
        return
    saved = max(prices.ms(frozenset()) - prices.ms(fastest), _SMALLEST)
    for step in range(STEPS):
        yield cut(prices, saved / error * 2.0 ** (step - STEPS // 2))

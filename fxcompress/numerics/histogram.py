"""A histogram of a stream: a fixed number of bins, whose width doubles when the values outgrow them.

Bin edges are whole multiples of the width, which is a power of two: zero is an edge, and two neighbours make
exactly one bin of twice the width. What was counted before the range grew is therefore counted as if the
final bins had been known from the start: the histogram of a stream is that of everything at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4096
"""Bins. A quarter of them at least are in use, four for each of 256 levels; 32 KiB per tensor."""

_CHUNK = 1 << 20
"""Values that are binned at once."""


class Histogram:
    """Counts of finite values in `BINS` bins of width :attr:`width` from :attr:`low` on."""

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.width = 0.0
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self._first = 0
        """The number of the first bin: bin k holds the values from k widths up to k + 1."""

    @property
    def low(self) -> float:
        """The lower edge of the first bin."""
        return self._first * self.width

    def edges(self) -> Tensor:
        """The `bins + 1` edges, in float64."""
        return torch.arange(self._first, self._first + self.bins + 1, dtype=torch.float64) * self.width

    def centers(self) -> Tensor:
        """The middles of the bins, in float64."""
        edges = self.edges()
        return (edges[1:] + edges[:-1]) / 2

    def update(self, values: Tensor) -> None:
        """Count the elements of a tensor of finite numbers, widening the bins until all of them fit."""
        flat = values.reshape(-1)
        for part in flat.split(_CHUNK):
            if part.numel():
                low, high = (float(bound) for bound in torch.aminmax(part))
                self._cover(low, high)
                # A power of two divides without rounding: no value lands in its neighbour's bin. The numbers
                # of bins stay below 2^24 (`_first_width`): float32 and int32 hold them.
                exact = part if part.dtype.itemsize >= 4 else part.float()
                places = (exact * (1.0 / self.width)).floor_().to(torch.int32).sub_(self._first)
                self.counts += torch.bincount(places, minlength=self.bins)

    def _cover(self, low: float, high: float) -> None:
        """Let the bins cover `[low, high]` beside what they hold."""
        if self.width == 0.0:
            self.width = _first_width(low, high, self.bins)
            self._first = math.floor(low / self.width)
        else:
            low = min(low, self._lowest())
            high = max(high, self._highest())
        while math.floor(high / self.width) - math.floor(low / self.width) >= self.bins:
            self._merge()
        self._move(math.floor(low / self.width), math.floor(high / self.width))

    def _lowest(self) -> float:
        held = torch.nonzero(self.counts)
        return (self._first + int(held[0])) * self.width if len(held) else math.inf

    def _highest(self) -> float:
        held = torch.nonzero(self.counts)
        return (self._first + int(held[-1])) * self.width if len(held) else -math.inf

    def _merge(self) -> None:
        """Make one bin of two; bins begin at even numbers."""
        counts, first = self.counts, self._first
        if first % 2:
            counts, first = torch.cat([counts.new_zeros(1), counts]), first - 1
        if len(counts) % 2:
            counts = torch.cat([counts, counts.new_zeros(1)])
        merged = counts.reshape(-1, 2).sum(1)
        self.counts = torch.zeros(max(self.bins, len(merged)), dtype=torch.float64)
        self.counts[: len(merged)] = merged
        self._first, self.width = first // 2, self.width * 2.0

    def _move(self, lowest: int, highest: int) -> None:
        """Let the first bin be one from which both ends are in reach, the values staying in their bins."""
        first = self._first
        if lowest < first or len(self.counts) > self.bins:
            first = lowest
        if highest >= first + self.bins:
            first = highest - self.bins + 1
        if first == self._first and len(self.counts) == self.bins:
            return
        moved = torch.zeros(self.bins, dtype=torch.float64)
        held = torch.nonzero(self.counts)[:, 0]
        moved[held + self._first - first] = self.counts[held]
        self.counts, self._first = moved, first


def _first_width(low: float, high: float, bins: int) -> float:
    """The power of two by which `[low, high]` has more than half of the bins, and no more than all.

    Zero need not be covered, but a bin is never so narrow that float32 could not tell its edges apart.
    """
    span = max(high - low, max(abs(low), abs(high)) * 2.0**-12, 2.0**-100)
    return 2.0 ** (math.ceil(math.log2(span)) - math.floor(math.log2(bins)))

"""Which range of a histogram is worth 256 levels: what lies outside is clamped, what lies inside is rounded.

- `percentile_range`: nearly all values (McKinstry et al., "Discovering low-precision networks", 2019);
- `mse_range`: the least mean squared error of rounding and clamping together (Shin et al. 2016; Banner et
  al., "Post training 4-bit quantization", 2019);
- `entropy_range`: the least Kullback-Leibler divergence between the clamped values and their 256-level form
  (Migacz, "8-bit inference with TensorRT", 2017).

All contain zero, for a uint8 scheme does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.numerics.histogram import Histogram
from fxcompress.numerics.interval import Range

KEPT = 0.9999
"""The share of the values inside a percentile's range; what is left out is shared by both ends."""

LEVELS = 256

STEPS = 48
"""How many shares of a range are tried per end and round."""

NARROWEST = 0.1
"""The smallest share of the range seen that is tried: below it more is clamped than any rounding costs."""


def percentile_range(histogram: Histogram, kept: float = KEPT) -> Range:
    """The range that leaves `(1 - kept) / 2` of the values beyond each end, linear inside a bin."""
    edges, counts = histogram.edges(), histogram.counts
    below = torch.cat([counts.new_zeros(1), counts.cumsum(0)]) / counts.sum()
    out = (1.0 - kept) / 2
    return Range(min(_at(edges, below, out), 0.0), max(_at(edges, below, 1.0 - out), 0.0))


def _at(edges: Tensor, below: Tensor, share: float) -> float:
    """The value below which `share` of the counts lie."""
    right = min(int(torch.searchsorted(below, share)), len(edges) - 1)
    left = max(right - 1, 0)
    inside = float(below[right] - below[left])
    part = (share - float(below[left])) / inside if inside > 0 else 1.0
    return float(edges[left] + (edges[right] - edges[left]) * min(max(part, 0.0), 1.0))


def mse_range(histogram: Histogram) -> Range:
    """The range whose 256 levels are closest to the values in the mean of squares.

    The ends are searched in turn, each on a grid that is refined around the best; two rounds of it.
    """
    best = _whole(histogram)
    values, counts = _occupied(histogram)

    def errors(lows: Tensor, highs: Tensor) -> Tensor:
        return squared_errors(values, counts, lows, highs)

    step = (1.0 - NARROWEST) / STEPS
    shares = torch.linspace(NARROWEST, 1.0, STEPS + 1, dtype=torch.float64)
    low, high = best.low, best.high
    for _ in range(2):
        highs = best.high * shares
        high = float(highs[errors(torch.full_like(highs, low), highs).argmin()])
        if best.low < 0.0:
            lows = best.low * shares
            low = float(lows[errors(lows, torch.full_like(lows, high)).argmin()])
    near = torch.linspace(-step, step, 2 * STEPS // 6 + 1, dtype=torch.float64)
    highs = (high + best.high * near).clamp(max=best.high)
    high = float(highs[errors(torch.full_like(highs, low), highs).argmin()])
    return Range(low, high)


def squared_errors(values: Tensor, counts: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
    """The summed squared error of 256 levels on each of some ranges; the twin of `affine.quantize`.

    Args:
        values: `[bins]` where values lie.
        counts: `[bins]` how many lie there.
        lows, highs: `[ranges]`, with zero between each pair.

    Returns:
        `[ranges]` in float64.
    """
    scales = ((highs - lows) / (LEVELS - 1)).clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    zeros = (-lows[:, None] / scales).round().clamp(0, LEVELS - 1)
    whole = ((values / scales).round() + zeros).clamp(0, LEVELS - 1)
    return ((whole - zeros) * scales - values).square() @ counts


def entropy_range(histogram: Histogram) -> Range:
    """The range in which 256 levels tell the most of the values.

    For every range the values beyond its ends count as the ends, as clamping makes them; the levels share
    their counts evenly among the bins that hold something. Zero's own bin is left out of the comparison: a
    rectifier's zeros are exact in every range, and by their number they would hide everything else.
    """
    whole = _whole(histogram)
    shares = torch.linspace(NARROWEST, 1.0, 2 * STEPS + 1, dtype=torch.float64).tolist()
    edges, counts = histogram.edges(), histogram.counts.clone()
    zero = int(torch.searchsorted(edges, 0.0, right=True)) - 1
    if 0 <= zero < len(counts):
        counts[zero] = max(float(counts[near]) for near in (zero - 1, zero + 1) if 0 <= near < len(counts))
    if not bool(counts.sum() > 0):
        return whole
    best, least = whole, float("inf")
    for share in shares:
        low, high = whole.low * share, whole.high * share
        found = divergence(counts, _place(edges, low), _place(edges, high))
        if found < least:
            best, least = Range(low, high), found
    return best


def _place(edges: Tensor, value: float) -> int:
    """The number of the edge next to a value."""
    return int(((value - edges[0]) / (edges[1] - edges[0])).round().clamp(0, len(edges) - 1))


def divergence(counts: Tensor, first: int, last: int) -> float:
    """The Kullback-Leibler divergence of the bins `first` to `last` (without it), clamped, from 256 levels.

    Levels are as equal as whole bins allow. Infinite where fewer bins than levels are left.
    """
    inside = counts[first:last]
    if len(inside) < LEVELS:
        return float("inf")
    clamped = inside.clone()
    clamped[0] += counts[:first].sum()
    clamped[-1] += counts[last:].sum()
    level = torch.arange(len(inside)) * LEVELS // len(inside)
    held = (clamped > 0).double()
    total = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, inside)
    among = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, held)
    coarse = (total / among.clamp(min=1.0))[level] * held
    if not (bool(clamped.sum() > 0) and bool(coarse.sum() > 0)):
        return float("inf")
    p, q = clamped / clamped.sum(), coarse / coarse.sum()
    floor = 1e-12  # an end that holds clamped values alone has no level of its own: finite, but dear
    return float((p * ((p + floor) / (q + floor)).log()).sum())


def _whole(histogram: Histogram) -> Range:
    """The occupied bins, and zero."""
    held = torch.nonzero(histogram.counts)[:, 0]
    edges = histogram.edges()
    return Range(min(float(edges[held[0]]), 0.0), max(float(edges[held[-1] + 1]), 0.0))


def _occupied(histogram: Histogram) -> tuple[Tensor, Tensor]:
    held = torch.nonzero(histogram.counts)[:, 0]
    return histogram.centers()[held], histogram.counts[held]

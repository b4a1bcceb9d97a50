"""The bounds of a budget, as sums of parts over the groups that may shrink."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from fxcompress.analysis.cost import Sum
from fxcompress.analysis.groups import Analysis
from fxcompress.analysis.latency import LatencyPrice
from fxcompress.axes.expression import Axis, Dim, leaves
from fxcompress.axes.positions import width
from fxcompress.errors import InputError
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.metering import Bound, Part
from fxcompress.plan.metering import Widths as Named
from fxcompress.plan.prune import Prune

Widths = Mapping[Axis, int]


def bounds_of(
    analysis: Analysis,
    options: Prune,
    latency: LatencyPrice | None,
    free: Mapping[Axis, str],
    fixed: Widths,
) -> tuple[Bound, ...]:
    """Every bound of the options.

    Args:
        free: the axes that may shrink, with the names of their groups.
        fixed: widths that are decided already.

    Raises:
        InputError: a bound in milliseconds without a price for them.
    """
    budget = options.budget
    sums = {"macs": analysis.price.macs, "params": analysis.price.params, "bytes": analysis.price.bytes}
    found = []
    for name, price in sums.items():
        full = price.at({})
        limits = [] if budget is None else [budget.limit(name, full)]
        if name == "macs" and options.ratio is not None:
            limits.append(full * (1 - options.ratio))
        stated = [limit for limit in limits if limit is not None]
        if stated:
            constant, parts = sum_parts(price, free, fixed)
            found.append(Bound(_LABELS[name], min(stated), full, constant, parts))
    if budget is not None and budget.ms is not None:
        found.append(_milliseconds(budget, latency, free, fixed))
    return tuple(found)


_LABELS = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}


def _milliseconds(
    budget: Budget, latency: LatencyPrice | None, free: Mapping[Axis, str], fixed: Widths
) -> Bound:
    if latency is None:
        raise InputError(
            f"the budget ms={budget.ms!r} needs kernel times, and none were measured",
            hint="optimize(prune=Prune(budget=Budget(ms=...))) measures them; or pass latency=LatencyPrice",
        )
    constant, parts = latency.constant, []
    for term in latency.terms:
        names = tuple(free[axis] for axis in term.axes if axis in free)
        at = _named(term.at, {axis: free[axis] for axis in term.axes if axis in free}, fixed)
        if names:
            parts.append(Part(names, at))
        else:
            constant += at({})
    full = latency.at({})
    return Bound("milliseconds", budget.limit("ms", full) or full, full, constant, tuple(parts))


def _named(
    at: Callable[[Widths], float], names: Mapping[Axis, str], fixed: Widths
) -> Callable[[Named], float]:
    def by_name(widths: Named) -> float:
        return at({**fixed, **{axis: widths[name] for axis, name in names.items()}})

    return by_name


def sum_parts(price: Sum, free: Mapping[Axis, str], fixed: Widths) -> tuple[float, tuple[Part, ...]]:
    """A sum of products of widths as a constant and one part per set of groups that terms have in common."""
    constant = price.constant
    shared: dict[tuple[str, ...], dict[tuple[Dim, ...], float]] = {}
    for weight, term in price.terms:
        varying: list[Dim] = []
        for dim in term:
            if any(axis in free for axis in leaves(dim)):
                varying.append(dim)
            else:
                weight *= width(dim, fixed)
        if not varying:
            constant += weight
            continue
        names = tuple(sorted({free[axis] for dim in varying for axis in leaves(dim) if axis in free}))
        varying.sort(key=id)
        products = shared.setdefault(names, {})
        products[tuple(varying)] = products.get(tuple(varying), 0.0) + weight
    parts = tuple(
        Part(names, _products(tuple(products.items()), free, fixed)) for names, products in shared.items()
    )
    return constant, parts


def _products(
    products: Sequence[tuple[tuple[Dim, ...], float]], free: Mapping[Axis, str], fixed: Widths
) -> Callable[[Named], float]:
    """The value of weighted products of dimensions at the widths of groups."""
    axes = {axis: free[axis] for dims, _ in products for dim in dims for axis in leaves(dim) if axis in free}

    def value(widths: Named) -> float:
        chosen = {**fixed, **{axis: widths[name] for axis, name in axes.items()}}
        return sum(weight * prod(width(dim, chosen) for dim in dims) for dims, weight in products)

    return value

"""Which prunable groups stay whole, and why: patterns, embeddings, the other factor of a product."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence

import torch

from fxcompress.analysis.groups import Analysis, Group, rivals
from fxcompress.axes.expression import Axis, leaves
from fxcompress.errors import InputError
from fxcompress.graph.module import tied
from fxcompress.plan.prune import Prune


def protection(analysis: Analysis, options: Prune) -> dict[str, str]:
    """By group name, why a prunable group stays whole."""
    reasons: dict[str, str] = {}
    tables = _tables(analysis) if options.protect_embeddings else set()
    full = analysis.price.macs.at({})
    patterns = _patterns(analysis, options.protect)
    for group in analysis.groups:
        pattern = next((patterns[name] for name in _tensors(group) if name in patterns), None)
        if pattern is not None:
            reasons[group.name] = f"protected by pattern {pattern!r}"
        elif group.axis in tables:
            reasons[group.name] = "the width of an embedding is protected"
        elif analysis.price.macs.at({group.axis: 1}) == full:
            reasons[group.name] = "it takes part in no multiply-accumulate"
    for name, reason in _chosen_factors(analysis, reasons):
        reasons.setdefault(name, reason)
    return reasons


def _tensors(group: Group) -> list[str]:
    return [member.tensor for member in group.members]


def _patterns(analysis: Analysis, protect: Sequence[str]) -> dict[str, str]:
    """By name of a stored tensor, the first pattern that one of its names matches; each must match one."""
    aliases = list(tied(analysis.program.module).values())
    found: dict[str, str] = {}
    for pattern in protect:
        matched = [names for names in aliases if fnmatch.filter(names, pattern)]
        if not matched:
            raise InputError(
                f"the pattern {pattern!r} of protected parameters matches none",
                hint=f"patterns are those of fnmatch; parameters are named like {aliases[0][0]!r}",
            )
        for name in (name for names in matched for name in names):
            found.setdefault(name, pattern)
    return found


def _tables(analysis: Analysis) -> set[Axis]:
    """The axes that make up the width of what embedding operators index."""
    lookup = torch.ops.aten.embedding.default
    tables = [node.args[0] for node in analysis.program.graph.nodes if node.target is lookup]
    return {axis for table in tables for axis in leaves(analysis.space.of(table)[1])}


def _chosen_factors(analysis: Analysis, reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Of the prunable factors of one product only the largest is pruned, so that nothing is removed twice."""
    for factors in rivals(analysis):
        left = [tuple(group for group in factor if group.name not in reasons) for factor in factors]
        open_factors = [factor for factor in left if factor]
        if len(open_factors) < 2:
            continue
        chosen = max(open_factors, key=lambda factor: sum(group.size for group in factor))
        for factor in open_factors:
            if factor is not chosen:
                for group in factor:
                    yield group.name, f"the other factor of its product, {chosen[0].name}, is pruned instead"

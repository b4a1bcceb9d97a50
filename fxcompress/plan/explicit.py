"""The shares that a caller fixes by hand: which groups a pattern of parameter names means.

A group belongs to the layers that make its channels, not to those that read them: `layer1.*` and `layer2.*`
may ask for different shares though the first layer of `layer2` reads what `layer1` makes. (`protect` is
wider: what is protected keeps every tensor whole, so the groups that it only reads stay whole as well.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from fxcompress.analysis.groups import Analysis, Group
from fxcompress.analysis.producers import read_only
from fxcompress.errors import InputError
from fxcompress.plan.naming import Names


class Means(IntEnum):
    """How a pattern means a group; the name of a group wins over a pattern that matches it among others."""

    READS = 0
    """It makes no channels that can go; this group it reads."""
    MAKES = 1
    """It matches a tensor that makes them."""
    NAMES = 2
    """It is the name of this group alone."""


@dataclass(frozen=True)
class Asked:
    """A share of one group that is to go, and how the pattern that says so means the group.

    `anything` marks shares of patterns such as `*`, which name nothing: they yield to `protect`.
    """

    share: float
    means: Means
    anything: bool = False


def explicit_shares(analysis: Analysis, ratios: Mapping[str, float]) -> dict[str, Asked]:
    """By group name, the share that patterns of parameter names remove.

    Raises:
        InputError: a pattern that matches no prunable group, or two that ask different shares of one where
            neither alone is its name.
    """
    if not ratios:
        return {}
    names, reads = Names(analysis), read_only(analysis)
    asked: dict[str, Asked] = {}
    for pattern, share in ratios.items():
        matched, means = _matched(analysis, pattern, names, reads)
        if not matched:
            raise InputError(
                f"the pattern {pattern!r} of ratios matches no parameter of a prunable group",
                hint="patterns are those of fnmatch, on names such as 'layer1.0.conv1.weight'; "
                "`fxcompress inspect` lists what is frozen",
            )
        for group in matched:
            before = asked.get(group.name)
            if before is None or (means is Means.NAMES and before.means < means):
                asked[group.name] = Asked(share, means, anything=not pattern.strip("*?."))
            elif before.share != share and (before.means is means or before.means is not Means.NAMES):
                raise InputError(
                    f"ratios asks to remove both {before.share} and {share} of the group {group.name!r}",
                    hint="coupled layers are one group: `fxcompress inspect` lists the members of each",
                )
            elif before.share == share and pattern.strip("*?."):
                asked[group.name] = replace(before, anything=False)
    return asked


def _matched(
    analysis: Analysis, pattern: str, names: Names, reads: frozenset[tuple[str, int]]
) -> tuple[list[Group], Means]:
    """The groups that a pattern means, and how."""
    named = [group for group in analysis.groups if group.goes_by(pattern)]
    if named:
        return named, Means.NAMES if len(named) == 1 else Means.MAKES
    tensors = names.matching(pattern)
    held = {
        group.name: [(item.tensor, item.dim) for item in group.members if item.tensor in tensors]
        for group in analysis.groups
    }
    makers = [group for group in analysis.groups if not reads.issuperset(held[group.name])]
    if makers:
        return makers, Means.MAKES
    return [group for group in analysis.groups if held[group.name]], Means.READS

"""What is ranked together: all groups, each group alone, or groups of one kind."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from fxcompress.analysis.groups import Analysis, Group
from fxcompress.numerics.saliency import Scores

_NUMBER = re.compile(r"\d+")


def in_scope(analysis: Analysis, scores: Mapping[str, Scores], scope: str) -> dict[str, Scores]:
    """Scores that one threshold can be laid on: as they are, or as ranks inside each group or kind.

    A rank is the share of the scope that is less salient: under one threshold, every scope loses the same
    share. Ties keep the order of their positions.
    """
    if scope == "global":
        return dict(scores)
    scopes: dict[str, list[str]] = {}
    for group in analysis.groups:
        if group.name in scores:
            scopes.setdefault(group.name if scope == "group" else kind_of(group), []).append(group.name)
    ranked: dict[str, Scores] = {}
    for names in scopes.values():
        together = np.concatenate([scores[name] for name in names])
        places = np.empty(len(together))
        places[np.argsort(together, kind="stable")] = np.arange(len(together))
        ranks = (places + 0.5) / len(together)
        starts = np.cumsum([0, *(len(scores[name]) for name in names)])
        ranked |= {name: ranks[start : start + len(scores[name])] for name, start in zip(names, starts)}
    return {name: ranked[name] for name in scores}


def kind_of(group: Group) -> str:
    """What repeated blocks have in common: the group's name without its numbers, and its size."""
    return f"{_NUMBER.sub('*', group.name)} of {group.size}"

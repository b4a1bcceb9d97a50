"""What is ranked together: all groups, each group alone, or groups of one kind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from fxcompress.analysis.groups import Analysis, Group
from fxcompress.axes.positions import occurrences
from fxcompress.graph import walk
from fxcompress.numerics.saliency import Scores


def in_scope(analysis: Analysis, scores: Mapping[str, Scores], scope: str) -> dict[str, Scores]:
    """Scores that one threshold can be laid on: as they are, or as ranks inside each group or kind.

    A rank is the share of the scope that is less salient: under one threshold, every scope loses the same
    share. Ties keep the order of their positions. Groups without scores take no part.
    """
    if scope == "global":
        return dict(scores)
    kinds = kinds_of(analysis) if scope == "kind" else {}
    scopes: dict[object, list[str]] = {}
    for name in scores:
        scopes.setdefault(kinds.get(name, name), []).append(name)
    ranked: dict[str, Scores] = {}
    for names in scopes.values():
        together = np.concatenate([scores[name] for name in names])
        places = np.empty(len(together))
        places[np.argsort(together, kind="stable")] = np.arange(len(together))
        ranks = (places + 0.5) / len(together)
        starts = np.cumsum([0, *(len(scores[name]) for name in names)])
        ranked |= {name: ranks[start : start + len(scores[name])] for name, start in zip(names, starts)}
    return {name: ranked[name] for name in scores}


Kind = tuple[object, ...]


def kinds_of(analysis: Analysis) -> dict[str, Kind]:
    """By group name, what repeated blocks have in common: the size, and which operators read which dimension
    of its parameters with how many positions per index. Names play no part.
    """
    readers = {str(node.target): node for node in walk.tensor_nodes(analysis.program)}
    return {group.name: (group.size, *sorted(_roles(analysis, group, readers))) for group in analysis.groups}


def _roles(
    analysis: Analysis, group: Group, nodes: Mapping[str, fx.Node]
) -> list[tuple[str, int, tuple[int, ...]]]:
    roles = []
    for member in group.members:
        if not isinstance(walk.tensor(analysis.program, member.tensor), torch.nn.Parameter):
            continue
        counts = tuple(int((labels == 0).sum()) for labels in occurrences(member.expression, group.axis))
        read = sorted(
            f"{reader.target} {reader.all_input_nodes.index(nodes[member.tensor])}"
            for reader in nodes[member.tensor].users
        )
        roles.append((" ".join(read), member.dim, counts))
    return roles

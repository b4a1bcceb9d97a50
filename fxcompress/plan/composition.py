"""Several plans, one after the other, stated as one plan of the first program.

Every round of pruning sees a program that the rounds before it have cut. What its plan keeps is mapped back,
position by position of every stored tensor, to the positions of the first program; a group of the first
program then keeps the indices whose positions are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from fxcompress.analysis.groups import Analysis, Group
from fxcompress.axes.positions import Indices, kept, occurrences
from fxcompress.errors import ProofError
from fxcompress.graph import walk
from fxcompress.plan.pruning_plan import PruningPlan, make_plan

Places = Mapping[str, tuple[Indices, ...]]
"""By stored tensor, for each dimension, the position in the first program of each position that is left."""


@dataclass(frozen=True)
class Composition:
    """Where the positions of a pruned program were in the first one.

    Args:
        base: the analysis of the first program.
        places: of the program as it is now.
    """

    base: Analysis
    places: Places

    @classmethod
    def start(cls, base: Analysis) -> Self:
        """Nothing is removed yet."""
        return cls(
            base,
            {
                str(node.target): tuple(np.arange(size, dtype=np.int64) for size in walk.hint_shape(node))
                for node in walk.tensor_nodes(base.program)
            },
        )

    def after(self, analysis: Analysis, plan: PruningPlan) -> Composition:
        """One plan further.

        Args:
            analysis: of the program as it is now, which the plan was made for.
            plan: what is removed from it.
        """
        indices = plan.indices(analysis)
        places = {
            str(node.target): tuple(
                before[kept(dim, indices)]
                for before, dim in zip(self.places[str(node.target)], analysis.space.of(node), strict=True)
            )
            for node in walk.tensor_nodes(analysis.program)
        }
        return Composition(self.base, places)

    def origin(self, group: Group) -> Group | None:
        """The group of the first program that a group of the program as it is now is left of."""
        member = group.members[0]
        labels = occurrences(member.expression, group.axis)[0]
        inside = labels >= 0
        places = self.places[member.tensor][member.dim][inside]
        for candidate in self.base.groups:
            for item in candidate.members:
                if (item.tensor, item.dim) == (member.tensor, member.dim) and any(
                    _one_to_one(labels[inside], found[places])
                    for found in occurrences(item.expression, candidate.axis)
                ):
                    return candidate
        return None

    def _left(self, group: Group) -> tuple[int, ...]:
        """The indices of a group of the first program that are left."""
        member = group.members[0]
        labels = occurrences(member.expression, group.axis)[0][self.places[member.tensor][member.dim]]
        return tuple(int(index) for index in np.unique(labels[labels >= 0]))

    def plan(self, protected: Mapping[str, str], relaxed: Mapping[str, int]) -> PruningPlan:
        """All that was removed so far, as one plan of the first program.

        Raises:
            ProofError: what is left is no choice of indices of the first program's groups.
        """
        channels = {
            group.name: left for group in self.base.groups if len(left := self._left(group)) < group.size
        }
        plan = make_plan(self.base, channels, protected, {k: v for k, v in relaxed.items() if k in channels})
        indices = plan.indices(self.base)
        for node in walk.tensor_nodes(self.base.program):
            name = str(node.target)
            wanted = [kept(dim, indices) for dim in self.base.space.of(node)]
            if not all(map(np.array_equal, wanted, self.places[name])):
                raise ProofError(
                    f"what the rounds removed of {name} cannot be stated as one plan of the original",
                    hint="this is a fault in fxcompress: please report it with the model's graph",
                )
        return plan


def _one_to_one(left: Indices, right: Indices) -> bool:
    """Whether two labellings of the same positions are the same but for the names of the labels."""
    pairs = np.unique(np.stack([left, right]), axis=1).shape[1]
    return bool((right >= 0).all()) and pairs == len(np.unique(left)) == len(np.unique(right))

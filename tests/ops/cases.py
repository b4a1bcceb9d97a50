"""How a case is written: a function that builds a small network around one operator, and what must be
prunable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from fxcompress.graph.program import Program
from tests.ops.building import Net

Build = Callable[[Net], fx.Node | Sequence[fx.Node]]


@dataclass(frozen=True)
class Case:
    """A network and the sizes of its groups, ascending; `statistics` are the group sizes that are tagged."""

    name: str
    build: Build
    sizes: tuple[int, ...]
    statistics: tuple[int, ...]
    dynamic: bool

    def net(self) -> tuple[Net, tuple[fx.Node, ...]]:
        net = Net(dynamic=self.dynamic)
        result = self.build(net)
        return net, (result,) if isinstance(result, fx.Node) else tuple(result)

    def program(self) -> Program:
        net, outputs = self.net()
        return net.program(*outputs)


class Cases(list[Case]):
    """A table of cases; `@table.case(..)` adds a function to it."""

    def case(
        self, *sizes: int, statistics: tuple[int, ...] = (), dynamic: bool = False
    ) -> Callable[[Build], Build]:
        def add(build: Build) -> Build:
            self.append(Case(build.__name__, build, tuple(sorted(sizes)), statistics, dynamic))
            return build

        return add

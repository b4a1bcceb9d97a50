"""What can be proven at all: a program whose outputs follow from its inputs."""

from __future__ import annotations

from fxcompress.errors import NotSupported
from fxcompress.graph import walk
from fxcompress.graph.agreement import random_nodes
from fxcompress.graph.program import Program


def refuse_random(program: Program) -> None:
    """Refuse a program that draws random numbers, naming the first operator that does.

    Raises:
        NotSupported: two runs of the program may differ, so that nothing about it can be proven.
    """
    for node in random_nodes(program):
        raise NotSupported(
            f"{node.name} draws random numbers: two runs of the model differ, and no proof can compare them",
            hint="make forward deterministic in evaluation mode: pass the noise as an input, or leave it out",
            node=node.format_node(),
            source=walk.source(node),
        )

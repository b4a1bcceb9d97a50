"""The rewrites that a plan may name, and how a program comes to have them.

A plan is made for a program whose over-tied widths were loosened. Whoever applies it to the user's program,
or proves it against that, first makes the same rewrites: they depend on the graph alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.passes.contract import Pass
from fxcompress.passes.copy_shared_tables import CopySharedTables
from fxcompress.passes.split_packed_linears import SplitPackedLinears

LOOSEN: tuple[Pass, ...] = (
    SplitPackedLinears(),
    CopySharedTables(),  # then: the parts that are free may still share a table
)
"""What runs before analysis where channels are to be removed; it computes what the model does."""

REWRITES: dict[str, Pass] = {
    item.name: item for item in (SplitPackedLinears(), CopySharedTables(), CopySharedTables(trainable=True))
}
"""Every rewrite that keeps an origin map, by the name under which plans list it."""


def rewriting(names: Sequence[str]) -> tuple[Pass, ...]:
    """The rewrites of these names, in order; raises InputError for one that does not exist."""
    for name in names:
        if name not in REWRITES:
            raise InputError(
                f"the plan was made after a rewrite {name!r}, which is not known",
                hint=f"known are {', '.join(REWRITES)}",
            )
    return tuple(REWRITES[name] for name in names)


def loosened(program: Program, rewrites: Sequence[str] | None = None) -> Program:
    """The program after these rewrites (None: those of `LOOSEN`); none that it went through is repeated.

    Raises:
        InputError: a rewrite that does not exist.
    """
    for rewrite in LOOSEN if rewrites is None else rewriting(rewrites):
        if rewrite.name not in program.origins.rewrites:
            program = rewrite.run(program).program
    return program

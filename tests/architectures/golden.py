"""The golden table: which share of each architecture pruning must reach.

Equivalence proofs cannot see a needless freeze: what is frozen is right. So the share of parameters and MACs
that lie in prunable groups, and the share that goes when every group shrinks to one index, are written down
and may not fall. To write them anew, for all architectures or some:

    python -m tests.architectures.golden [NAME ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fxcompress.analysis.groups import analyse
from fxcompress.analysis.prunability import prunability
from fxcompress.graph.program import Program
from fxcompress.passes.loosening import LOOSEN
from fxcompress.pipeline import Journal
from tests.architectures.catalog import CATALOG, LIBRARY
from tests.architectures.programs import captured

TABLE = Path(__file__).with_name("golden_shares.json")
Shares = dict[str, float]


def shares(program: Program) -> Shares:
    """The four shares of a program, after the rewrites that come before pruning."""
    found = prunability(analyse(Journal().apply_all(LOOSEN, program)))
    return {
        "params": round(found.params.share, 3),
        "macs": round(found.macs.share, 3),
        "removable_params": round(found.params.removable_share, 3),
        "removable_macs": round(found.macs.removable_share, 3),
    }


def golden() -> dict[str, Shares]:
    """The table, by architecture."""
    table: dict[str, Shares] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def below_the_table(name: str, program: Program) -> dict[str, tuple[float, float]]:
    """The shares that are more than a percent below the table's, each with the table's."""
    found, wanted = shares(program), golden()[name]
    return {part: (found[part], least) for part, least in wanted.items() if found[part] < least - 0.01}


def main(names: list[str]) -> None:
    """Measure the named architectures, or all, and write the table."""
    known = golden() if TABLE.exists() else {}
    every = [architecture.name for architecture in (*CATALOG, *LIBRARY)]
    for name in names or every:
        known[name] = shares(captured(name))
        captured.cache_clear()
    lines = [f'  "{name}": {json.dumps(known[name])}' for name in every if name in known]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

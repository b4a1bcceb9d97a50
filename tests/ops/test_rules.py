"""Every row of every table, proven on networks of its own."""

from __future__ import annotations

import pytest

from fxcompress.ops.consumption import CONSUMED
from fxcompress.ops.cost import MACS
from fxcompress.ops.dimensions.table import RULES
from fxcompress.ops.resize import RESIZES
from tests.ops.cases import Case
from tests.ops.cases_contraction import CONTRACTION
from tests.ops.cases_elementwise import ELEMENTWISE
from tests.ops.cases_indexing import INDEXING
from tests.ops.cases_layout import LAYOUT
from tests.ops.cases_normalisation import NORMALISATION
from tests.ops.cases_order import ORDER
from tests.ops.cases_pooling import POOLING
from tests.ops.cases_recurrent import RECURRENT
from tests.ops.proving import prove

CASES = [*CONTRACTION, *RECURRENT, *LAYOUT, *ORDER, *INDEXING, *NORMALISATION, *POOLING, *ELEMENTWISE]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_rule_lets_go_can_go(case: Case) -> None:
    proven = prove(case.program())
    groups = proven.analysis.groups
    assert tuple(sorted(group.size for group in groups)) == case.sizes
    assert tuple(sorted(group.size for group in groups if group.statistics)) == case.statistics


def targets(cases: list[Case]) -> set[object]:
    """Every operator that occurs in a case."""
    return {node.target for case in cases for node in case.net()[0].graph.nodes if node.op == "call_function"}


def test_every_row_has_a_case() -> None:
    tested = targets(CASES)
    assert not [str(target) for target in RULES if target not in tested]


def test_the_tables_agree() -> None:
    """A resized or masked operator has a dimension rule; what is priced contracts, or is frozen whole."""
    for table in (CONSUMED, RESIZES):
        assert not [str(target) for target in table if target not in RULES]
    assert set(CONSUMED) <= set(MACS)
    assert not [str(target) for target in MACS if target in RULES and target not in CONSUMED]

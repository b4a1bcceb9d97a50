"""What `benchmarks/fusion.py` measures: every rule of a file has a network in which it applies."""

from __future__ import annotations

import onnx
import pytest

from benchmarks.fusion import make, program_of
from benchmarks.fusion_models import SUBJECTS, UNTIMED, Subject
from fxcompress.api.quantizing import INTEGER_FORMS
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import FORMS, REWRITES
from fxcompress.recipes import LOSSLESS

RULES = {
    *(stage.name for stage in (*LOSSLESS, *INTEGER_FORMS)),
    *(step.__name__.replace("_", "-") for step in REWRITES),
    *FORMS,
}


def test_every_rule_is_measured_or_is_there_for_another_reason() -> None:
    measured = {subject.rule for subject in SUBJECTS}
    assert measured | UNTIMED.keys() == RULES
    assert not measured & UNTIMED.keys()
    assert all(set(subject.instead) | set(subject.never) <= RULES for subject in SUBJECTS)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: f"{subject.rule}: {subject.network}")
def test_the_rule_applies_to_its_network(subject: Subject) -> None:
    without, whole = make(subject, program_of(subject)).values()
    assert written(*without) != written(*whole)


def written(program: Program, file: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """The operators of a program and of its file: the exporter does some of the rules by itself."""
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return called, [node.op_type for node in file.graph.node]

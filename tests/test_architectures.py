"""The whole path on every architecture: each once here; more seeds, ONNX and INT8 in the slow tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxcompress.analysis.groups import analyse
from fxcompress.graph.archive import load
from fxcompress.graph.wellformed import well_formed
from tests.architectures.catalog import NAMES, VARIANTS, by_name
from tests.architectures.programs import call, captured, largest_difference

each_architecture = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in VARIANTS else []) for name in NAMES]
)


@each_architecture
def test_a_captured_program_computes_what_the_model_does_at_other_sizes(name: str) -> None:
    """Exactly: the operators are the same ones."""
    architecture, program = by_name(name), captured(name)
    well_formed(program)
    assert all(0 in axes for axes in program.signature.dynamic.values()), "the batch is static"
    inputs = architecture.example(3, seed=7, length=17)
    assert largest_difference(call(program, inputs), call(architecture.model(), inputs)) == 0.0


@each_architecture
def test_an_archive_gives_back_the_same_program(name: str, tmp_path: Path) -> None:
    program = captured(name)
    program.save(tmp_path / "program.fxc")
    loaded = load(tmp_path / "program.fxc")
    well_formed(loaded)
    assert str(loaded) == str(program)
    inputs = by_name(name).example(3, seed=7, length=17)
    assert largest_difference(call(loaded, inputs), call(program, inputs)) == 0.0


@each_architecture
def test_analysis_understands_every_operator(name: str) -> None:
    analysis = analyse(captured(name))
    assert len(analysis.groups) > 3
    assert not [item for item in analysis.frozen if "rule" in item.reason]

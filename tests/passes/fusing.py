"""What a fusing pass must show: it applies, exactly and on a copy, or it declines and says why."""

from __future__ import annotations

import torch

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.contract import Outcome, Pass
from tests.passes.models import Case, assert_same_function, operators


def program_of(case: Case) -> Program:
    """The captured model of a case in float64."""
    return capture(case.model(), case.example()).to(torch.float64)


def assert_fuses(stage: Pass, case: Case, after: str, changes: int = 1) -> Outcome:
    """The pass leaves the operators ``after`` (short names, in order) and the function what it was."""
    program = program_of(case)
    before = str(program)
    outcome = stage.run(program)
    assert " ".join(short(outcome.program)) == after
    assert len(outcome.changed) == changes
    well_formed(outcome.program)
    assert_same_function(program, outcome.program, 1e-11)
    assert str(program) == before, "the program given must stay as it was"
    return outcome


def assert_declines(stage: Pass, case: Case, reason: str) -> None:
    """The pass returns the program it was given, and every site it declined says why."""
    program = program_of(case)
    before = str(program)
    outcome = stage.run(program)
    assert outcome.changed == ()
    assert outcome.program is program
    assert str(program) == before
    assert outcome.declined
    assert any(reason in decline.reason for decline in outcome.declined), outcome.declined
    assert all(decline.source is not None and ".py" in decline.source for decline in outcome.declined)


def short(program: Program) -> list[str]:
    """The operators of a program without their overloads."""
    return [name.partition(".")[0] for name in operators(program)]

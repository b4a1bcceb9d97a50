"""Stages run in order, each checked, timed and noted; an error says where it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fxcompress.errors import IllFormed, InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.edit import set_arg
from fxcompress.graph.program import Program
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.pipeline import Journal
from fxcompress.recipes import LOSSLESS
from tests.passes.models import Chain, operators


@dataclass(frozen=True)
class Scripted:
    """A stage that does what the test says."""

    name: str
    fault: str | None = None

    def run(self, program: Program) -> Outcome:
        if self.fault == "raises":
            raise InputError("no good")
        if self.fault == "declines":
            return Outcome(program, (), (Decline("relu", "not today"),))
        copy = program.copy()
        if self.fault == "breaks":
            call = next(node for node in copy.graph.nodes if node.op == "call_function")
            set_arg(call, 0, next(node for node in copy.graph.nodes if node.op == "get_attr"))
        return Outcome(copy, ("relu",))


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(
        Chain(l=nn.Linear(3, 4), b=nn.BatchNorm1d(4), d=nn.Dropout(), r=nn.ReLU()).eval(), torch.randn(2, 3)
    )


def test_stages_run_in_the_written_order_and_leave_a_log(program: Program) -> None:
    told: list[str] = []
    journal = Journal(told.append)
    result = journal.apply_all((Scripted("one"), Scripted("two", "declines"), Scripted("three")), program)
    with journal.step("look"):
        pass
    assert told == ["one", "two", "three", "look"]
    assert [entry.name for entry in journal.entries] == told
    assert [entry.changed for entry in journal.entries] == [("relu",), (), ("relu",), ()]
    assert journal.entries[1].declined == (Decline("relu", "not today"),)
    assert all(entry.seconds >= 0 for entry in journal.entries)
    assert result.history == [*program.history, "one: 1 change", "three: 1 change"]


def test_a_stage_that_breaks_the_graph_is_caught_and_named(program: Program) -> None:
    with pytest.raises(IllFormed, match="while running breaker"):
        Journal().apply(Scripted("breaker", "breaks"), program)


def test_an_error_says_which_step_was_running(program: Program) -> None:
    journal = Journal()
    with pytest.raises(InputError, match="while running picky"):
        journal.apply(Scripted("picky", "raises"), program)
    with pytest.raises(InputError, match="while running look"), journal.step("look"):
        raise InputError("no good")
    assert journal.entries == []


def test_the_lossless_stages_clear_each_others_way(program: Program) -> None:
    """The dropout sits after the batch norm here; in the other order it would hide the pair from the fold."""
    hidden = capture(Chain(l=nn.Linear(3, 4), d=nn.Dropout(), b=nn.BatchNorm1d(4)).eval(), torch.randn(2, 3))
    before = str(hidden)
    assert operators(Journal().apply_all(LOSSLESS, hidden)) == ["linear.default"]
    assert operators(Journal().apply_all(LOSSLESS, program)) == ["linear.default", "relu.default"]
    assert str(hidden) == before

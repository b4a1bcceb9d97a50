"""Running a program in steps gives what running it whole gives, and edits between steps count."""

from __future__ import annotations

import torch
from torch import nn

from fxcompress.graph import edit, walk
from fxcompress.graph.capture import capture
from fxcompress.graph.execute import run_flat
from fxcompress.graph.program import Program
from fxcompress.graph.stepwise import Stepwise


def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    return capture(model.eval(), (torch.randn(3, 4),))


def test_steps_make_the_whole() -> None:
    whole = program()
    run, inputs = Stepwise(whole), whole.flat_example()
    for cut in range(len(run.nodes) + 1):
        values = run.begin(inputs)
        run.advance(values, 0, cut)
        run.advance(values, cut, len(run.nodes))
        assert torch.equal(run.outputs(values)[0], run_flat(whole, inputs)[0])


def test_only_what_is_read_later_is_held() -> None:
    run = Stepwise(program())
    values = run.begin(run.program.flat_example())
    run.advance(values, 0, 3)
    assert list(values) == [run.nodes[2]]
    assert run.peak_bytes() >= 3 * 6 * 4


def test_an_edit_counts_from_then_on() -> None:
    whole = program()
    run, inputs = Stepwise(whole), whole.flat_example()
    values = run.begin(inputs)
    run.advance(values, 0, 4)
    edit.set_tensor(whole, "4.weight", torch.zeros(2, 6))
    run.advance(values, 4, len(run.nodes))
    assert torch.equal(run.outputs(values)[0], walk.tensor(whole, "4.bias").expand(3, 2))

"""Batch norms get the statistics of the data at hand, whatever the batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes import reestimate_batch_norm
from fxcompress.passes.reestimate_batch_norm import ReestimateBatchNorm, Reestimated
from tests.passes.models import Apply, Chain


def program() -> Program:
    torch.manual_seed(0)
    layers = {"a": nn.Conv1d(3, 4, 3), "n": nn.BatchNorm1d(4), "r": nn.ReLU(), "b": nn.Conv1d(4, 5, 1)}
    model = Chain(**layers, m=nn.BatchNorm1d(5, affine=False)).double()
    return capture(model.eval(), (torch.randn(2, 3, 6).double(),))


def data(seed: int, count: int) -> Tensor:
    return torch.randn(count, 3, 6, generator=torch.Generator().manual_seed(seed)).double() * 3 + 1


def test_one_batch_is_what_training_mode_would_see() -> None:
    before, x = program(), data(1, 32)
    outcome = ReestimateBatchNorm([x]).run(before)
    assert outcome.changed == (
        "batch_norm: statistics of 128 values per channel",
        "batch_norm_1: statistics of 128 values per channel",
    )
    y = torch.nn.functional.conv1d(x, walk.tensor(before, "a.weight"), walk.tensor(before, "a.bias"))
    assert torch.allclose(walk.tensor(outcome.program, "n.running_mean"), y.mean((0, 2)), rtol=1e-12)
    assert torch.allclose(walk.tensor(outcome.program, "n.running_var"), y.var((0, 2)), rtol=1e-12)
    parameters = (walk.tensor(before, "n.weight"), walk.tensor(before, "n.bias"))
    y = torch.relu(torch.nn.functional.batch_norm(y, None, None, *parameters, training=True))
    y = torch.nn.functional.conv1d(y, walk.tensor(before, "b.weight"), walk.tensor(before, "b.bias"))
    assert torch.allclose(walk.tensor(outcome.program, "m.running_mean"), y.mean((0, 2)), rtol=1e-12)
    assert torch.allclose(walk.tensor(outcome.program, "m.running_var"), y.var((0, 2)), rtol=1e-12)


def test_uneven_batches_of_the_first_norm_are_one_sample() -> None:
    x = data(2, 40)
    whole = ReestimateBatchNorm([x]).run(program()).program
    parts = ReestimateBatchNorm([(part, None) for part in x.split([7, 20, 13])]).run(program()).program
    for name in ("n.running_mean", "n.running_var"):
        assert torch.allclose(walk.tensor(whole, name), walk.tensor(parts, name), rtol=1e-10)


def test_the_program_given_stays_as_it_was() -> None:
    before = program()
    held = {name: value.clone() for name, value in before.module.state_dict().items()}
    ReestimateBatchNorm([data(3, 8)]).run(before)
    assert all(torch.equal(held[name], value) for name, value in before.module.state_dict().items())


def test_nothing_to_do_returns_the_same_program() -> None:
    plain = capture(nn.Linear(2, 2).eval(), (torch.randn(2, 2),))
    outcome = ReestimateBatchNorm([torch.randn(4, 2)]).run(plain)
    assert outcome.program is plain


def test_declined_with_reasons() -> None:
    """Norms that measure every batch, and statistics that two norms share."""
    norm = nn.BatchNorm1d(3)
    model = Apply(
        lambda self, x: self.free(self.norm(self.norm(x) + 1)), norm=norm, free=nn.InstanceNorm1d(3)
    )
    free = nn.BatchNorm1d(3, track_running_stats=False)
    both = capture(Chain(m=model, f=free).eval(), (torch.randn(4, 3, 5),))
    outcome = ReestimateBatchNorm([torch.randn(4, 3, 5)]).run(both)
    assert outcome.program is both
    assert [site.reason for site in outcome.declined] == [
        "its statistics are computed or shared",
        "its statistics are computed or shared",
        "it measures every batch anyway",
    ]


def test_a_single_value_has_no_variance() -> None:
    single = capture(nn.Sequential(nn.BatchNorm1d(3)).eval(), (torch.randn(2, 3),))
    outcome = ReestimateBatchNorm([torch.randn(1, 3)]).run(single)
    assert outcome.program is single
    assert "no variance" in outcome.declined[0].reason


def test_numbers_that_are_none_are_refused() -> None:
    grown = capture(
        Chain(e=Apply(lambda self, x: torch.exp(x)), n=nn.BatchNorm1d(3)).eval(), (torch.randn(2, 3),)
    )
    with pytest.raises(InputError, match="batch_norm holds a NaN or an infinity"):
        ReestimateBatchNorm([torch.full((4, 3), 1e4)]).run(grown)


def shifted(other: Program) -> Program:
    """A program with statistics that are none of its own."""
    with torch.no_grad():
        walk.tensor(other, "m.running_mean").add_(0.5)
        walk.tensor(other, "m.running_var").mul_(3.0)
    return other


def fitting() -> Program:
    """The program with the statistics of other samples than those of the tests."""
    return ReestimateBatchNorm([data(7, 2000)]).run(program()).program


def error(reference: Program, found: Program, x: Tensor) -> float:
    with torch.no_grad():
        wanted, y = reference.module(x), found.module(x)
    return float((wanted - y).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_a_reference_keeps_statistics_that_bring_the_outputs_closer() -> None:
    """Measured on three quarters of the chunks, judged on the others; on new samples it holds too."""
    reference, other = fitting(), shifted(fitting())
    outcome = ReestimateBatchNorm([data(5, 400)], reference).run(other)
    assert isinstance(outcome, Reestimated)
    assert len(outcome.changed) == 2
    assert (outcome.used, outcome.judged) == (272, 128)
    assert outcome.after < 0.1 * outcome.before
    x = data(6, 50)
    assert error(reference, outcome.program, x) < 0.1 * error(reference, other, x)


def test_a_reference_refuses_statistics_that_do_not() -> None:
    """What is exact already can only become worse."""
    reference = program()
    outcome = ReestimateBatchNorm([data(5, 400)], reference).run(reference)
    assert outcome.program is reference
    assert not outcome.changed
    assert "a new measurement of the statistics is left out" in outcome.declined[-1].reason


def test_one_batch_is_split_to_be_judged_and_one_sample_cannot_be() -> None:
    outcome = ReestimateBatchNorm([data(5, 16)], program()).run(shifted(program()))
    assert isinstance(outcome, Reestimated)
    assert (outcome.used, outcome.judged) == (12, 4)
    single = ReestimateBatchNorm([data(5, 1)], program()).run(shifted(program()))
    assert "nothing is left to judge a correction by" in single.declined[-1].reason


def test_single_samples_are_joined() -> None:
    """Norms are then fed by statistics of chunks, as of any other batches."""
    reference, other = fitting(), shifted(fitting())
    whole = ReestimateBatchNorm([data(5, 400)], reference).run(other)
    single = ReestimateBatchNorm(list(data(5, 400).split(1)), reference).run(other)
    assert isinstance(whole, Reestimated)
    assert isinstance(single, Reestimated)
    assert (single.used, single.judged) == (whole.used, whole.judged)
    assert torch.equal(
        walk.tensor(single.program, "m.running_var"), walk.tensor(whole.program, "m.running_var")
    )


def test_no_more_is_read_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reestimate_batch_norm, "MEMORY", 100 * data(5, 1).nbytes)
    outcome = ReestimateBatchNorm([data(5, 400)], fitting()).run(shifted(fitting()))
    assert isinstance(outcome, Reestimated)
    assert outcome.used + outcome.judged == 128  # the chunk that reaches it is the last


def test_statistics_of_the_batch_that_make_no_numbers_are_declined_beside_a_reference() -> None:
    """Finite with the statistics it has: one value far out is at -16 deviations of its batch."""
    first, second = nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3)
    first.running_var.fill_(100.0)
    root = Apply(lambda self, x: torch.sqrt(x + 4))
    program = capture(Chain(a=first, r=root, b=second).eval(), (torch.randn(2, 3),))
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    x[7] = -30.0
    with torch.no_grad():
        assert program.module(x).isfinite().all()
    outcome = ReestimateBatchNorm([x], program).run(program)
    assert outcome.program is program
    assert "holds a NaN or an infinity" in outcome.declined[-1].reason

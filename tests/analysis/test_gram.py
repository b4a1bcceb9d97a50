"""What compensation is judged by: one scale whatever the batches are, and samples that no fit saw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse
from fxcompress.graph.capture import capture
from fxcompress.passes.compensate import Compensate, Compensated
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import make_plan


def compensated(batches: list[Tensor]) -> Compensated:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval().double()
    program = capture(model, torch.randn(4, 6, dtype=torch.float64))
    analysis = analyse(program)
    plan = make_plan(analysis, {group.name: tuple(range(group.size // 2)) for group in analysis.groups})
    return Compensate(program, plan, batches).run(PruneChannels(plan).run(program).program)


def data(count: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_error_does_not_depend_on_how_samples_are_batched() -> None:
    """The variance is that over samples; of batches of one it must not become the mean square."""
    samples = data(40)
    whole, single = compensated([samples]), compensated(list(samples.split(1)))
    assert whole.judged == single.judged == 5
    assert 0.5 < single.before / whole.before < 2


def test_the_error_is_of_samples_that_chose_nothing() -> None:
    """Dampings and corrections chosen on the samples of the report would make it look better than it is."""
    outcome = compensated([data(32)])
    assert (outcome.used, outcome.judged, outcome.reported, outcome.apart) == (32, 4, 4, True)
    few = compensated([data(31)])
    assert (few.judged, few.reported, few.apart) == (7, 7, False)


def test_samples_that_a_fit_saw_do_not_judge_it() -> None:
    """Repeated samples count once: what is judged on them would look perfect."""
    samples = data(30)
    outcome = compensated([samples, samples, samples[:7]])
    assert outcome.used == 30
    assert outcome.after == compensated([samples]).after


def test_one_sample_many_times_is_one_sample() -> None:
    outcome = compensated([torch.ones(16, 6, dtype=torch.float64), torch.ones(8, 6, dtype=torch.float64)])
    assert not outcome.changed
    assert outcome.declined[0].reason.startswith("all calibration data is one sample")

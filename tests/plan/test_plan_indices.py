"""Indices that a caller writes into a plan: any whole numbers, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import PruningPlan, make_plan

NAME = "0.weight[0]"


def analysis() -> Analysis:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return analyse(capture(model, torch.randn(2, 4)))


@pytest.mark.parametrize("stay", [np.arange(3), torch.arange(3), range(3), [np.int64(0), 1, 2]])
def test_whole_numbers_of_any_kind_are_indices(stay: Any) -> None:
    plan = make_plan(analysis(), {NAME: stay})
    assert plan.channels == {NAME: (0, 1, 2)}
    assert PruningPlan.from_dict(plan.to_dict()) == plan
    assert all(type(place) is int for place in plan.channels[NAME])


@pytest.mark.parametrize("stay", ["abc", ["0", "1"], [[0]], [0.5, 1.0], [0, 0], [0, 8], [-1, 0], [], None, 3])
def test_what_is_no_choice_of_indices_is_refused(stay: Any) -> None:
    found = analysis()
    with pytest.raises(InputError, match="not an ascending choice"):
        make_plan(found, {NAME: stay})
    if stay is not None:
        with pytest.raises(InputError, match="not an ascending choice"):
            make_plan(found, {NAME: (0, 1)}).with_channels(found, {NAME: stay})


@pytest.mark.parametrize("stay", ["abc", ["0", "1"], [[0]], [0.5, 1.0], None])
def test_a_file_with_other_things_than_indices_is_refused(stay: Any) -> None:
    found = analysis()
    data = make_plan(found, {NAME: (0, 1)}).to_dict()
    data["channels"][NAME] = stay
    with pytest.raises(InputError):
        PruneChannels(PruningPlan.from_dict(data)).run(found.program)

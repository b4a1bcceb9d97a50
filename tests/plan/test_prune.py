"""The options of pruning check themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

from fxcompress.errors import InputError
from fxcompress.numerics.saliency import NAMED, Saliency
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import FACTORS, SCOPES, Prune
from fxcompress.plan.sparsity import Sparsify


@pytest.mark.parametrize(
    "options",
    [
        {"max_ratio": 1.0},
        {"max_ratio": "a"},
        {"min_ratio": -0.1},
        {"min_ratio": 0.95},
        {"min_width": 0},
        {"block": 0},
        {"block": 2.5},
        {"budget": 0.5},
        {"ratios": 0.5},
        {"ratios": {"a": 1.0}},
        {"ratios": {"a": "half"}},
        {"ratios": {3: 0.5}},
        {"saliency": "taylr"},
        {"saliency": None},
        {"scope": "block"},
        {"factors": "heads"},
        {"protect": "layer1.*"},
        {"protect": (3,)},
        {"compensate": "yes"},
        {"loss": "cross_entropy"},
    ],
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Prune(0.5, **options)


@pytest.mark.parametrize(
    "options", [{"saliency": "taylr"}, {"scope": "block"}, {"factors": "heads"}, {"min_width": 0}]
)
def test_every_refusal_says_what_to_do(options: dict[str, object]) -> None:
    with pytest.raises(InputError) as raised:
        Prune(0.5, **options)
    assert raised.value.hint


def test_numbers_of_numpy_are_numbers() -> None:
    """They come from sweeps over arrays, and must reach the report's JSON."""
    options = Prune(
        np.float32(0.5), Budget(macs=np.int64(9)), block=np.int64(8), ratios={"a": np.float64(0.25)}
    )
    assert options == Prune(0.5, Budget(macs=9), block=8, ratios={"a": 0.25})
    assert json.loads(json.dumps(options.to_dict()))["block"] == 8


@pytest.mark.parametrize("options", [{"layers": "b.*"}, {"protect": "b.*"}, {"layers": (1,)}, {"protect": 3}])
def test_patterns_of_masks_are_a_tuple(options: dict[str, object]) -> None:
    """A text was read letter by letter."""
    with pytest.raises(InputError, match="no tuple of patterns"):
        Sparsify(**options)


@pytest.mark.parametrize(
    "options", [{"kind": "l3"}, {"reduce": "median"}, {"normalize": "min"}, {"seed": -1}, {"seed": 0.5}]
)
def test_saliencies_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Saliency(**options)


def test_a_share_is_assumed_only_where_nothing_says_how_much() -> None:
    assert Prune().ratio == 0.5
    assert Prune(budget=Budget(macs="50%")).ratio is None
    assert Prune(ratios={"a": 0.5}).ratio is None


@pytest.mark.parametrize("name", NAMED)
def test_a_name_stands_for_a_saliency(name: str) -> None:
    assert Prune(saliency=name).criterion == NAMED[name]
    assert Prune(saliency=NAMED[name]).criterion == NAMED[name]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("factors", FACTORS)
def test_every_rule_is_plain_data_for_the_report(scope: str, factors: str) -> None:
    options = Prune(
        budget=Budget(ms=3.0),
        saliency=Saliency("taylor", "max"),
        scope=scope,
        ratios={"a": 0.0},
        factors=factors,
        protect=("head.*", nn.Conv2d, lambda group: group.size < 4),
        loss=nn.functional.mse_loss,
    )
    data = json.loads(json.dumps(options.to_dict()))
    assert (data["scope"], data["factors"], data["loss"]) == (scope, factors, "mse_loss")
    assert data["protect"][:2] == ["head.*", "Conv2d"]
    assert data["saliency"]["reduce"] == "max"


@pytest.mark.parametrize("value", [0, 1, "yes"])
def test_compensate_is_a_bool_or_none(value: object) -> None:
    """`0` is not `False` to who asks `is False`."""
    with pytest.raises(InputError, match="neither True, False nor None"):
        Prune(0.5, compensate=value)

"""Two linear operators in a row become one where that takes fewer multiply-accumulates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.passes.merge_linears import MergeLinears
from tests.passes.fusing import assert_declines, assert_fuses
from tests.passes.models import Apply, Case, Chain

IMAGE = (2, 4, 7, 6)


def case(name: str, *layers: nn.Module) -> Case:
    shape = (2, 3, 4) if isinstance(layers[0], nn.Linear) else IMAGE
    return Case(name, lambda: Chain(**{f"l{place}": layer for place, layer in enumerate(layers)}), shape)


def conv(wide_in: int, wide_out: int, kernel: int = 1, **options: object) -> nn.Conv2d:
    return nn.Conv2d(wide_in, wide_out, kernel, **options)  # type: ignore[arg-type]


MERGED = (
    (case("linears", nn.Linear(4, 9), nn.Linear(9, 5)), "linear", 1),
    (case("three", nn.Linear(4, 9), nn.Linear(9, 8, bias=False), nn.Linear(8, 3)), "linear", 2),
    (case("points", conv(4, 9, stride=2), conv(9, 5, stride=2, bias=False)), "conv2d", 1),
    (case("padded_point", conv(4, 9, padding=1, stride=2), conv(9, 5)), "conv2d", 1),
    (case("point_behind", conv(4, 9, 3, padding=2, dilation=2, stride=2), conv(9, 3)), "conv2d", 1),
    (case("point_before", conv(4, 9), conv(9, 5, 3, stride=2)), "conv2d", 1),
    (case("point_before_padding", conv(4, 9, bias=False), conv(9, 5, 3, padding=1)), "conv2d", 1),
)


@pytest.mark.parametrize(("found", "after", "changes"), MERGED, ids=lambda item: getattr(item, "name", ""))
def test_merges(found: Case, after: str, changes: int) -> None:
    assert_fuses(MergeLinears(), found, after, changes)


DECLINED = (
    (case("low_rank", nn.Linear(4, 1), nn.Linear(1, 4)), "one takes 96 multiply-accumulates, two take 48"),
    (case("separable", conv(4, 4, groups=4), conv(4, 3)), "is grouped"),
    (case("depthwise", conv(4, 9), conv(9, 9, 3, groups=9)), "is grouped"),
    (case("bias_in_padding", conv(4, 9), conv(9, 2, 3, padding=1)), "would have a bias"),
    (case("both_wide", conv(4, 9, 3), conv(9, 2, 3)), "both kernels have several taps"),
    (case("steps", conv(4, 9, stride=2), conv(9, 2, 3)), "steps over what"),
    (case("late_padding", conv(4, 9, bias=False), conv(9, 5, padding=1)), "pads around single taps"),
    (case("word", conv(4, 9, 3, padding="same"), conv(9, 5, padding="same")), "pads by a word"),
    (
        Case(
            "read_between",
            lambda: Apply(lambda m, x: m.b(y := m.a(x)).sum() + y, a=nn.Linear(4, 9), b=nn.Linear(9, 2)),
            (2, 4),
        ),
        "has other consumers",
    ),
)


@pytest.mark.parametrize(("found", "reason"), DECLINED, ids=lambda item: getattr(item, "name", ""))
def test_declines(found: Case, reason: str) -> None:
    assert_declines(MergeLinears(), found, reason)


def test_tied_weights_are_declined() -> None:
    model = Chain(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight = model.a.weight
    outcome = MergeLinears().run(capture(model.eval(), torch.randn(2, 4)))
    assert outcome.changed == ()
    assert "shared" in outcome.declined[0].reason


def test_a_nonlinearity_between_is_no_site() -> None:
    found = case("relu", nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    program = capture(found.model(), found.example())
    assert MergeLinears().run(program).program is program


def test_a_bias_of_one_number_is_declined() -> None:
    """`F.linear` takes a bias of any shape that broadcasts."""

    def twice(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, m.v, m.b), m.w)

    found = Case(
        "scalar", lambda: Apply(twice, v=torch.randn(9, 4), w=torch.randn(5, 9), b=torch.zeros(())), (2, 3, 4)
    )
    assert_declines(MergeLinears(), found, "not one number per channel")

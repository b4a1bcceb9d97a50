"""Scales and shifts per channel go into the operator before or behind, exactly, or stay with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.passes.fuse_affine import FuseAffine
from tests.passes.fusing import assert_declines, assert_fuses
from tests.passes.models import Apply, Case, Chain

IMAGE, TOKENS = (2, 4, 5, 6), (2, 3, 4)
Function = Callable[[nn.Module, Tensor], object]


def case(name: str, function: Function, shape: tuple[int, ...], **parts: Callable[[], nn.Module]) -> Case:
    """A function of a model with a vector `t` [6], an image of it `s` [6, 1, 1], and layers."""
    return Case(
        name,
        lambda: Apply(
            function, s=torch.rand(6, 1, 1), t=torch.rand(6), **{key: make() for key, make in parts.items()}
        ),
        shape,
    )


def conv(**options: object) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(4, 6, 3, **options)  # type: ignore[arg-type]


def linear(**options: object) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(4, 6, **options)  # type: ignore[arg-type]


def up(**options: object) -> Callable[[], nn.Module]:
    return lambda: nn.ConvTranspose2d(4, 6, 3, 2, **options)  # type: ignore[arg-type]


BEFORE = (
    (case("layer_scale", lambda m, x: m.t * m.c(x), TOKENS, c=linear()), "linear", 1),
    (case("no_bias", lambda m, x: m.t * m.c(x), TOKENS, c=linear(bias=False)), "linear", 1),
    (case("shift", lambda m, x: m.c(x) + m.s, IMAGE, c=conv(bias=False, padding=1)), "conv2d", 1),
    (case("alpha", lambda m, x: torch.add(m.c(x), m.s, alpha=3), IMAGE, c=conv()), "conv2d", 1),
    (case("reversed", lambda m, x: m.s - m.c(x), IMAGE, c=conv()), "conv2d", 1),
    (case("minus_alpha", lambda m, x: torch.sub(m.s, m.c(x), alpha=2), IMAGE, c=conv()), "conv2d", 1),
    (case("from_a_number", lambda m, x: 3 - m.c(x), IMAGE, c=conv()), "conv2d", 1),
    (case("negative", lambda m, x: -m.c(x), IMAGE, c=conv()), "conv2d", 1),
    (case("quotient", lambda m, x: (m.c(x) - 2) / m.s, IMAGE, c=conv(groups=2)), "conv2d", 2),
    (case("numbers", lambda m, x: (m.c(x) * 0.5).flatten(1) + 1.0, IMAGE, c=conv()), "conv2d flatten", 2),
    (case("transposed", lambda m, x: m.c(x) * m.s + 1, IMAGE, c=up(groups=2)), "conv_transpose2d", 2),
    (
        case(
            "heads",
            lambda m, x: m.c(x).unflatten(-1, (2, 3)).transpose(1, 2) * 0.3,
            TOKENS,
            c=linear(),
        ),
        "linear unflatten transpose",
        1,
    ),
)


@pytest.mark.parametrize(("found", "after", "changes"), BEFORE, ids=lambda item: getattr(item, "name", ""))
def test_goes_into_the_operator_before(found: Case, after: str, changes: int) -> None:
    assert_fuses(FuseAffine(), found, after, changes)


BEHIND = (
    (case("norm", lambda m, x: m.c(m.b(x)), IMAGE, b=lambda: nn.BatchNorm2d(4), c=conv()), "conv2d"),
    (
        case(
            "norm_of_groups",
            lambda m, x: m.c(m.b(x)),
            IMAGE,
            b=lambda: nn.BatchNorm2d(4),
            c=conv(groups=2, bias=False),
        ),
        "conv2d",
    ),
    (case("scale_before_padding", lambda m, x: m.c(x * 3), IMAGE, c=conv(padding=1)), "conv2d"),
    (case("scale_before_words", lambda m, x: m.c(x / 3), IMAGE, c=conv(padding="same")), "conv2d"),
    (case("shift_before_valid", lambda m, x: m.c(x + 3), IMAGE, c=conv(padding="valid")), "conv2d"),
    (
        case(
            "shift_before_a_point_that_pads_by_a_word",
            lambda m, x: m.c(x + 3),
            IMAGE,
            c=lambda: nn.Conv2d(4, 6, 1, padding="same"),
        ),
        "conv2d",
    ),
    (case("scale_before_transposed", lambda m, x: m.c(x * 3), IMAGE, c=up(groups=2)), "conv_transpose2d"),
    (
        case(
            "shift_before_points",
            lambda m, x: m.c(x + 3),
            IMAGE,
            c=lambda: nn.ConvTranspose2d(4, 6, 1, groups=2),
        ),
        "conv_transpose2d",
    ),
    (
        case(
            "vector_before_linear",
            lambda m, x: m.c(x * m.t + m.t),
            (2, 3, 6),
            c=lambda: nn.Linear(6, 5, bias=False),
        ),
        "linear",
    ),
    (
        case(
            "through_a_move",
            lambda m, x: m.c((x * m.s).flatten(2).transpose(1, 2)),
            (2, 6, 3, 4),
            c=lambda: nn.Linear(6, 5),
        ),
        "flatten transpose linear",
    ),
    (case("chain", lambda m, x: m.c((x - 0.5) / 0.2 * 3 + 1), IMAGE, c=conv()), "conv2d"),
)


@pytest.mark.parametrize(("found", "after"), BEHIND, ids=lambda item: getattr(item, "name", ""))
def test_goes_into_the_operator_behind(found: Case, after: str) -> None:
    changes = {"vector_before_linear": 2, "chain": 4}.get(found.name, 1)
    assert_fuses(FuseAffine(), found, after, changes)


DECLINED = (
    (case("padded", lambda m, x: m.c(x + 3), IMAGE, c=conv(padding=1)), "pads with zeros, which are not"),
    (case("same", lambda m, x: m.c(x + 3), IMAGE, c=conv(padding="same")), "pads with zeros, which are not"),
    (case("taps", lambda m, x: m.c(x + 3), IMAGE, c=up()), "pads with zeros, which are not shifted"),
    (case("two_readers", lambda m, x: m.c(y := x * 3) + y.sum(), IMAGE, c=conv()), "has several consumers"),
    (case("used_before", lambda m, x: (y := m.c(x)).relu() + y * 3, IMAGE, c=conv()), "has other consumers"),
    (
        case("shared", lambda m, x: m.c(x) * m.s + m.c(-x.relu()).relu(), IMAGE, c=conv()),
        "is shared (c.weight",
    ),
    (case("other_axis", lambda m, x: m.c(x) * m.t[:3, None], TOKENS, c=linear()), None),
    (case("wide", lambda m, x: m.c(x) * torch.ones(6, 3, 4), IMAGE, c=conv()), None),
    (
        case("rows", lambda m, x: m.c(x) * torch.arange(1, 4)[:, None].to(x), TOKENS, c=linear()),
        "scales axis 1",
    ),
    (case("infinite", lambda m, x: m.c(x) + float("inf"), IMAGE, c=conv()), None),
    (case("broadcast", lambda m, x: m.c(x).sum(1, keepdim=True) * m.s, IMAGE, c=conv()), None),
    (
        case(
            "norm",
            lambda m, x: m.c(x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * m.t),
            (2, 3, 6),
            c=lambda: nn.Linear(6, 5),
        ),
        "scales a norm",
    ),
)


@pytest.mark.parametrize(
    ("found", "reason"), [item for item in DECLINED if item[1]], ids=lambda item: getattr(item, "name", "")
)
def test_declines(found: Case, reason: str) -> None:
    assert_declines(FuseAffine(), found, reason)


@pytest.mark.parametrize(
    "found", [item[0] for item in DECLINED if item[1] is None], ids=lambda item: item.name
)
def test_what_is_no_map_per_channel_stays(found: Case) -> None:
    program = capture(found.build().eval(), found.example())
    outcome = FuseAffine().run(program)
    assert outcome.program is program


def test_tied_weights_are_left_alone() -> None:
    model = Chain(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight = model.a.weight
    program = capture(Apply(lambda m, x: m.n(x * 2), n=model).eval(), torch.randn(2, 4))
    outcome = FuseAffine().run(program)
    assert outcome.program is program
    assert "shared" in outcome.declined[0].reason


def test_listing_before_and_after() -> None:
    model = Apply(lambda m, x: m.c(x) * m.t, c=nn.Linear(4, 6), t=torch.rand(6)).eval()
    outcome = FuseAffine().run(capture(model, torch.randn(2, 4)))
    assert str(outcome.program).splitlines()[2:] == [
        "tensors:",
        "  c_weight: f32[6, 4] parameter c.weight",
        "  c_bias: f32[6] parameter c.bias",
        "operators:",
        "  linear: f32[batch, 6] = linear(x, c_weight, c_bias)  # c",
        "outputs:",
        "  output: f32[batch, 6] = linear",
    ]
    assert outcome.changed == ("mul into linear",)


@pytest.mark.parametrize(
    "function",
    [lambda m, x: F.linear(x * 2.0, m.v), lambda m, x: F.linear(x, m.v) + 1.0],
    ids=["before", "behind"],
)
def test_a_linear_whose_weight_is_a_vector_stays(function: Function) -> None:
    model = Apply(function, v=torch.randn(4)).eval()
    program = capture(model, torch.randn(3, 4))
    outcome = FuseAffine().run(program)
    assert outcome.program is program
    assert any("is a vector" in item.reason for item in outcome.declined)

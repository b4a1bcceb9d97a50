"""Folding batch norms: what is folded, computed exactly; what is declined, and why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from tests.passes.models import Apply, Case, Chain, assert_same_function, operators


def transposed_norm(model: nn.Module, x: Tensor) -> Tensor:
    return model.b(model.l(x).transpose(1, 2)).transpose(1, 2)


def flattened_norm(model: nn.Module, x: Tensor) -> Tensor:
    return model.b(model.l(x).flatten(0, 1))


def norm_over_pixels(model: nn.Module, x: Tensor) -> Tensor:
    return model.b(model.c(x).flatten(2))


FOLDED = (
    Case("conv1d", lambda: Chain(c=nn.Conv1d(4, 6, 3), b=nn.BatchNorm1d(6)), (2, 4, 7)),
    Case("conv2d", lambda: Chain(c=nn.Conv2d(4, 6, 3, padding=1), b=nn.BatchNorm2d(6)), (2, 4, 5, 6)),
    Case("conv3d", lambda: Chain(c=nn.Conv3d(2, 3, 2), b=nn.BatchNorm3d(3)), (2, 2, 3, 4, 3)),
    Case("no_bias", lambda: Chain(c=nn.Conv2d(4, 6, 3, bias=False), b=nn.BatchNorm2d(6)), (2, 4, 5, 6)),
    Case(
        "padding_by_name",
        lambda: Chain(c=nn.Conv2d(4, 6, 3, padding="same"), b=nn.BatchNorm2d(6)),
        (2, 4, 5, 6),
    ),
    Case("grouped", lambda: Chain(c=nn.Conv2d(4, 6, 3, groups=2), b=nn.BatchNorm2d(6)), (2, 4, 5, 6)),
    Case("depthwise", lambda: Chain(c=nn.Conv2d(4, 8, 3, groups=4), b=nn.BatchNorm2d(8)), (2, 4, 5, 6)),
    Case("no_affine", lambda: Chain(c=nn.Conv2d(4, 6, 3), b=nn.BatchNorm2d(6, affine=False)), (2, 4, 5, 6)),
    Case("eps", lambda: Chain(c=nn.Conv2d(4, 6, 3), b=nn.BatchNorm2d(6, eps=0.3)), (2, 4, 5, 6)),
    Case(
        "transposed1d", lambda: Chain(c=nn.ConvTranspose1d(4, 6, 3, stride=2), b=nn.BatchNorm1d(6)), (2, 4, 5)
    ),
    Case(
        "transposed2d",
        lambda: Chain(c=nn.ConvTranspose2d(4, 6, 3, bias=False), b=nn.BatchNorm2d(6)),
        (2, 4, 3, 4),
    ),
    Case("transposed3d", lambda: Chain(c=nn.ConvTranspose3d(2, 3, 2), b=nn.BatchNorm3d(3)), (2, 2, 3, 2, 3)),
    Case(
        "transposed_grouped",
        lambda: Chain(c=nn.ConvTranspose2d(6, 9, 2, groups=3, dilation=2), b=nn.BatchNorm2d(9)),
        (2, 6, 3, 4),
    ),
    Case("linear", lambda: Chain(l=nn.Linear(5, 7), b=nn.BatchNorm1d(7)), (3, 5)),
    Case(
        "linear_transposed", lambda: Apply(transposed_norm, l=nn.Linear(5, 7), b=nn.BatchNorm1d(7)), (3, 4, 5)
    ),
    Case(
        "linear_flattened", lambda: Apply(flattened_norm, l=nn.Linear(5, 7), b=nn.BatchNorm1d(7)), (3, 4, 5)
    ),
    Case(
        "norm_over_pixels",
        lambda: Apply(norm_over_pixels, c=nn.Conv2d(2, 3, 1), b=nn.BatchNorm1d(3)),
        (2, 2, 3, 4),
    ),
)


def decomposed(case: Case) -> Program:
    exported = torch.export.export(case.model(), (case.example(),)).run_decompositions()
    return capture(exported)


@pytest.mark.parametrize("case", FOLDED, ids=lambda case: case.name)
def test_folds_exactly(case: Case) -> None:
    program = capture(case.model(), case.example()).to(torch.float64)
    before = str(program)
    outcome = FuseBatchNorm().run(program)
    assert len(outcome.changed) == 1
    assert outcome.declined == ()
    assert not [name for name in operators(outcome.program) if "batch_norm" in name]
    well_formed(outcome.program)
    assert_same_function(program, outcome.program)
    assert str(program) == before, "the program given must stay as it was"


@pytest.mark.parametrize(
    "case", [c for c in FOLDED if not c.name.startswith("linear")], ids=lambda case: case.name
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, while copying its call graph
def test_folds_the_decomposed_dialect(case: Case) -> None:
    program = decomposed(case).to(torch.float64)
    assert "_native_batch_norm_legit_no_training.default" in operators(program)
    outcome = FuseBatchNorm().run(program)
    assert len(outcome.changed) == 1
    assert operators(outcome.program)[0] == "convolution.default"
    assert_same_function(program, outcome.program)


def test_listing_before_and_after() -> None:
    model = Chain(c=nn.Conv2d(2, 4, 1, bias=False), b=nn.BatchNorm2d(4), r=nn.ReLU()).eval()
    program = capture(model, torch.randn(2, 2, 3, 3))
    outcome = FuseBatchNorm().run(program)
    assert operators(program) == ["conv2d.default", "batch_norm.default", "relu.default"]
    assert operators(outcome.program) == ["conv2d.default", "relu.default"]
    assert str(outcome.program).splitlines()[2:] == [
        "tensors:",
        "  c_weight: f32[4, 2, 1, 1] parameter c.weight",
        "  c_bias: f32[4] parameter c.bias",
        "operators:",
        "  conv2d: f32[batch, 4, 3, 3] = conv2d(x, c_weight, c_bias)  # c",
        "  relu: f32[batch, 4, 3, 3] = relu(conv2d)  # r",
        "outputs:",
        "  output: f32[batch, 4, 3, 3] = relu",
    ]
    names = {name: tuple(value.shape) for name, value in outcome.program.module.named_parameters()}
    assert names == {"c.weight": (4, 2, 1, 1), "c.bias": (4,)}
    assert dict(outcome.program.module.named_buffers()) == {}
    assert outcome.changed == ("batch_norm into conv2d",)


def test_new_bias_avoids_a_name_that_is_taken() -> None:
    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 2, 1, 1))
            self.bias = nn.Parameter(torch.randn(4, 1, 1))
            self.b = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(nn.functional.conv2d(x, self.weight)) + self.bias

    program = capture(Kernel().eval(), torch.randn(2, 2, 3, 3)).to(torch.float64)
    outcome = FuseBatchNorm().run(program)
    assert sorted(dict(outcome.program.module.named_parameters())) == ["bias", "bias_1", "weight"]
    assert_same_function(program, outcome.program)


def test_float32_fold_is_rounded_once() -> None:
    case = FOLDED[1]
    program = capture(case.model(), case.example())
    folded = FuseBatchNorm().run(program).program
    exact = FuseBatchNorm().run(program.to(torch.float64)).program
    for name, value in folded.module.named_parameters():
        assert torch.equal(value, exact.module.get_parameter(name).float())


def twice(model: nn.Module, x: Tensor) -> Tensor:
    return model.b(model.c(x)) + model.d(model.c(x * 2))


def branch(model: nn.Module, x: Tensor) -> Tensor:
    y = model.c(x)
    return model.b(y) + y


def computed(model: nn.Module, x: Tensor) -> Tensor:
    return model.b(nn.functional.conv2d(x, model.w * 2))


def over_rows(model: nn.Module, x: Tensor) -> Tensor:
    return model.b(model.l(x))


def merged(model: nn.Module, x: Tensor) -> Tensor:
    return model.b(model.c(x).reshape(-1, 6, 10))


DECLINED = (
    (
        Case(
            "shared_weight",
            lambda: Apply(twice, c=nn.Conv2d(2, 4, 1), b=nn.BatchNorm2d(4), d=nn.BatchNorm2d(4)),
            (2, 2, 3, 3),
        ),
        "is shared (c.weight, also used by",
    ),
    (
        Case(
            "other_consumer", lambda: Apply(branch, c=nn.Conv2d(2, 4, 1), b=nn.BatchNorm2d(4)), (2, 2, 3, 3)
        ),
        "the output of conv2d has other consumers (add",
    ),
    (
        Case(
            "no_statistics",
            lambda: Chain(c=nn.Conv2d(2, 4, 1), b=nn.BatchNorm2d(4, track_running_stats=False)),
            (2, 2, 3, 3),
        ),
        "has no running statistics",
    ),
    (
        Case(
            "computed_weight",
            lambda: Apply(computed, w=torch.ones(4, 2, 1, 1), b=nn.BatchNorm2d(4)),
            (2, 2, 3, 3),
        ),
        "is computed, not stored",
    ),
    (
        Case(
            "follows_relu",
            lambda: Chain(c=nn.Conv2d(2, 4, 1), r=nn.ReLU(), b=nn.BatchNorm2d(4)),
            (2, 2, 3, 3),
        ),
        "follows aten.relu.default",
    ),
    (
        Case("first", lambda: Chain(b=nn.BatchNorm2d(2), c=nn.Conv2d(2, 4, 1)), (2, 2, 3, 3)),
        "follows the placeholder x",
    ),
    (
        Case("normalises_rows", lambda: Apply(over_rows, l=nn.Linear(5, 7), b=nn.BatchNorm1d(4)), (3, 4, 5)),
        "normalises axis 1 of linear, whose channels are axis 2",
    ),
    (
        Case(
            "mixed_by_reshape", lambda: Apply(merged, c=nn.Conv2d(2, 4, 1), b=nn.BatchNorm1d(6)), (2, 2, 3, 5)
        ),
        "mixes the channels with another axis",
    ),
)


@pytest.mark.parametrize(("case", "reason"), DECLINED, ids=[case.name for case, _ in DECLINED])
def test_declines_with_the_reason(case: Case, reason: str) -> None:
    program = capture(case.build().eval(), case.example())
    before = str(program)
    outcome = FuseBatchNorm().run(program)
    assert outcome.program is program
    assert str(program) == before
    assert outcome.changed == ()
    assert outcome.declined
    assert all(reason in decline.reason for decline in outcome.declined)
    assert all(decline.source is not None and ".py" in decline.source for decline in outcome.declined)


def test_training_mode_is_declined_and_eval_mode_folds() -> None:
    case = FOLDED[1]
    program = capture(case.model(), case.example())
    program.train()
    outcome = FuseBatchNorm().run(program)
    assert outcome.changed == ()
    assert "training mode" in outcome.declined[0].reason
    assert len(FuseBatchNorm().run(program.eval()).changed) == 1


def test_tied_weights_are_declined() -> None:
    model = Chain(c=nn.Conv1d(4, 4, 1), b=nn.BatchNorm1d(4), e=nn.Conv1d(4, 4, 1))
    model.e.weight = model.c.weight
    outcome = FuseBatchNorm().run(capture(model.eval(), torch.randn(2, 4, 3)))
    assert outcome.changed == ()
    assert "shared" in outcome.declined[0].reason


def test_one_declined_site_does_not_stop_another() -> None:
    model = Chain(c=nn.Conv1d(4, 4, 1), b=nn.BatchNorm1d(4), r=nn.ReLU(), d=nn.BatchNorm1d(4))
    outcome = FuseBatchNorm().run(capture(model.eval(), torch.randn(2, 4, 3)))
    assert outcome.changed == ("batch_norm into conv1d",)
    assert [decline.site for decline in outcome.declined] == ["batch_norm_1"]


def test_two_norms_in_a_row_fold_both() -> None:
    case = Case(
        "two", lambda: Chain(c=nn.Conv1d(4, 6, 2), b=nn.BatchNorm1d(6), d=nn.BatchNorm1d(6)), (2, 4, 5)
    )
    program = capture(case.model(), case.example()).to(torch.float64)
    outcome = FuseBatchNorm().run(program)
    assert operators(outcome.program) == ["conv1d.default"]
    assert_same_function(program, outcome.program)


def test_the_comparison_sees_a_wrong_fold() -> None:
    case = FOLDED[1]
    program = capture(case.model(), case.example()).to(torch.float64)
    folded = FuseBatchNorm().run(program).program
    with torch.no_grad():
        folded.module.get_parameter("c.weight")[0].mul_(1 + 1e-9)
    with pytest.raises(AssertionError):
        assert_same_function(program, folded)


@given(
    groups=st.integers(1, 3),
    inner=st.integers(1, 3),
    outer=st.integers(1, 3),
    transposed=st.booleans(),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=8)
def test_any_convolution(
    groups: int, inner: int, outer: int, transposed: bool, bias: bool, affine: bool, seed: int
) -> None:
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    case = Case(
        "any",
        lambda: Chain(
            c=kind(groups * inner, groups * outer, 2, groups=groups, bias=bias),
            b=nn.BatchNorm1d(groups * outer, affine=affine),
        ),
        (2, groups * inner, 4),
    )
    program = capture(case.model(seed), case.example(seed)).to(torch.float64)
    outcome = FuseBatchNorm().run(program)
    assert len(outcome.changed) == 1
    assert_same_function(program, outcome.program, 1e-11)

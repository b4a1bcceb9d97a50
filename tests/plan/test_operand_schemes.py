"""Kernels of one target that want their activations in different integers: one scheme per tensor, always."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress
from fxcompress.analysis.calibration import calibrate
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.ops.quantization import Kind
from fxcompress.passes.remove_identities import RemoveIdentities
from fxcompress.plan.operand_schemes import place_in_agreement
from fxcompress.plan.placement import place
from fxcompress.plan.quantization import plan_quantization, tensors_of_any_choice
from fxcompress.plan.quantization_plan import Quantize
from fxcompress.proof.structure import structural_faults
from fxcompress.targets.onnxruntime import onnxruntime
from fxcompress.targets.target import ASYMMETRIC, SYMMETRIC, Kernel, Scheme, Target
from fxcompress.targets.tensorrt import tensorrt
from tests.passes.models import Apply
from tests.plan.quantized import VNNI, quantized
from tests.targets.forms import conv

MIXED = Target(
    name="mixed",
    channel_block=8,
    kernels={
        Kind.CONVOLUTION: Kernel("Conv"),
        Kind.LINEAR: Kernel("Gemm", writes_integers=False, activations=SYMMETRIC),
        Kind.ADD: Kernel("Add"),
        Kind.LAYOUT: Kernel("", absorbs=False),
    },
    batched_linear=Kernel("MatMul", writes_integers=False, absorbs=False, activations=SYMMETRIC),
)
"""Convolutions and additions in uint8, linears in symmetric int8."""


class Head(nn.Module):
    """A convolution, a pooling in float, two linears in a row."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        self.pooled = pooled
        self.c, self.f, self.g = conv(3, 8), nn.Linear(8 if pooled else 512, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(x))
        x = torch.tanh(x.mean((2, 3))) if self.pooled else x.flatten(1)
        return self.g(torch.relu(self.f(x)))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_kernel_gets_its_own_integers() -> None:
    _, plan, after = quantized(Head(), (IMAGE,), target=MIXED, options=Quantize(precision="full"))
    dtypes = {name: scheme.dtype for name, scheme in plan.activations.items()}
    assert dtypes == {"x": "uint8", "relu": "uint8", "tanh": "int8", "relu_1": "int8"}
    assert all(scheme.zero_point == 0 for scheme in plan.activations.values() if scheme.dtype == "int8")
    model = lower(after)
    assert structural_faults(model, MIXED) == ()
    faults = structural_faults(model, replace(MIXED, kernels={**MIXED.kernels, Kind.LINEAR: Kernel("Gemm")}))
    assert any("reads integers that are not its own" in fault for fault in faults)


def test_a_tensor_that_two_want_differently_serves_the_first() -> None:
    """The convolution writes uint8 alone, and layout between it and the linear changes nothing."""
    _, plan, after = quantized(Head(pooled=False), (IMAGE,), target=MIXED)
    assert plan.precision["conv2d"] == "int8"
    reason = next(item.reason for item in plan.declined if item.node == "linear")
    assert reason == ("it wants relu as int8 symmetric, which conv2d has as uint8 with a zero point")
    assert plan.precision["linear_1"] == "int8"
    assert structural_faults(lower(after), MIXED) == ()


def test_what_clashes_decides_nothing() -> None:
    """The addition wants int8 of what is uint8: it runs in float, the next convolution does not."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        y = model.d(x := model.c(x))
        return model.e(y + x)

    added = replace(MIXED.kernels[Kind.ADD], activations=SYMMETRIC)
    target = replace(MIXED, kernels={**MIXED.kernels, Kind.ADD: added})
    model = Apply(forward, c=conv(8, 8), d=conv(8, 8), e=conv(8, 8))
    options = Quantize(precision="full")
    _, plan, _ = quantized(model, (torch.randn(2, 8, 4, 4),), target=target, options=options)
    assert [item.node for item in plan.declined] == ["add"]
    assert plan.activations["add"].dtype == "uint8"
    assert {plan.precision[name] for name in ("conv2d", "conv2d_1", "conv2d_2")} == {"int8"}


def test_a_choice_without_what_decided_a_scheme_has_the_ranges_it_needs() -> None:
    """With the convolution in float, the linear that gave way to it is in integers."""
    program = RemoveIdentities().run(capture(Head(pooled=False).eval(), (IMAGE,))).program
    ranges = calibrate(program, [(IMAGE,)], tensors_of_any_choice(program, MIXED))
    plan = plan_quantization(program, ranges, MIXED, spared=frozenset({"conv2d"}))
    assert plan.precision["linear"] == "int8"
    assert plan_quantization(program, ranges, MIXED).precision["linear"] == "float"


def test_operators_are_spared_by_their_name_alone() -> None:
    """A module may be called what another one's operator is."""
    model = Apply(
        lambda m, x: m.linear(torch.tanh(m.first(x))), first=nn.Linear(8, 8), linear=nn.Linear(8, 4)
    )
    program = capture(model.eval(), (torch.randn(2, 8),))
    placement = place(program, MIXED, spared={"linear"})
    assert placement.contractions == ["linear_1"]


def test_a_fused_addition_wants_its_own_integers_too() -> None:
    """The other branch of a skip connection is quantized for the addition."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model.e(torch.tanh(x) + model.c(x))

    added = Kernel("Add", writes_integers=False, activations=SYMMETRIC)
    target = replace(tensorrt(), activations=ASYMMETRIC, kernels={**tensorrt().kernels, Kind.ADD: added})
    _, plan, _ = quantized(
        Apply(forward, c=conv(8, 8), e=conv(8, 8)), (torch.randn(2, 8, 4, 4),), target=target
    )
    assert plan.activations["tanh"].dtype == "int8"
    assert plan.activations["add"].dtype == "uint8"


def test_a_target_of_one_scheme_is_placed_as_before() -> None:
    program = capture(Head().eval(), (IMAGE,))
    assert place_in_agreement(program, VNNI) == place(program, VNNI)


def test_what_optimize_returns_is_proven_and_keeps_the_outputs() -> None:
    torch.manual_seed(0)
    model = Head().eval()
    result = fxcompress.optimize(model, IMAGE, quantize="int8", calibration=[IMAGE], target=MIXED)
    assert result.plan.quantization is not None
    assert {scheme.dtype for scheme in result.plan.quantization.activations.values()} == {"uint8", "int8"}
    assert result.report.output_error is not None
    assert result.report.output_error.relative is not None
    assert result.report.output_error.relative < 0.1
    assert "structure" in " ".join(proof.name for proof in result.report.proofs)


def test_schemes_that_no_kernel_reads_are_refused() -> None:
    with pytest.raises(InputError, match="one scale per tensor"):
        replace(MIXED, batched_linear=Kernel("MatMul", activations=Scheme("int8", True, per_channel=True)))
    with pytest.raises(InputError, match="layout has the scheme of what it reads"):
        replace(MIXED, kernels={**MIXED.kernels, Kind.LAYOUT: Kernel("", activations=SYMMETRIC)})
    target = onnxruntime(set())
    with pytest.raises(InputError, match="hard sigmoid is the clamping of uint8"):
        replace(target, kernels={**target.kernels, Kind.ADD: Kernel("Add", activations=SYMMETRIC)})
    assert str(ASYMMETRIC) == "uint8 with a zero point"
    assert str(Scheme("int8", True, per_channel=True, bits=7)) == "int8 per channel symmetric in 7 bits"


STEPS = st.lists(st.sampled_from(["conv", "add", "tokens", "relu", "turn", "tanh"]), min_size=1, max_size=7)


@settings(max_examples=15, deadline=None)
@example(["conv", "tokens"], set())
@example(["conv", "conv", "add", "conv"], {"add"})
@given(STEPS, st.sets(st.sampled_from(["conv", "add"])))
def test_no_tensor_has_two_schemes_whatever_the_graph(steps: list[str], symmetric: set[str]) -> None:
    """Any chain with skips, any kernels in other integers: the file stands as the target says."""
    kinds = {"conv": Kind.CONVOLUTION, "add": Kind.ADD}
    own = {kinds[name]: replace(MIXED.kernels[kinds[name]], activations=SYMMETRIC) for name in symmetric}
    target = replace(MIXED, kernels={**MIXED.kernels, **own})
    layers = {
        f"l{place}": conv(8, 8) if step == "conv" else nn.Linear(8, 8) for place, step in enumerate(steps)
    }

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        skip = x
        for index, step in enumerate(steps):
            if step == "conv":
                x = getattr(model, f"l{index}")(x)
            elif step == "tokens":
                x = getattr(model, f"l{index}")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif step == "add":
                x, skip = x + skip, x
            elif step == "turn":
                x = x.transpose(2, 3)
            else:
                x = F.relu(x) if step == "relu" else torch.tanh(x)
        return x

    torch.manual_seed(0)
    _, plan, after = quantized(
        Apply(forward, **layers),
        (torch.randn(2, 8, 4, 4),),
        target=target,
        options=Quantize(precision="full"),
    )
    if plan.kernels:
        assert structural_faults(lower(after), target) == ()

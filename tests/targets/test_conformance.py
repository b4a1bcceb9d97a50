"""What the target claims, shown by the installed runtime: each form runs in the kernel its plan intends.

A failure here after an upgrade of the runtime means that `targets/onnxruntime.py` has to be measured again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fxcompress.lowering.lower import lower
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.proof.integer import integer_bound
from fxcompress.runtime.inspection import executed
from fxcompress.targets.onnxruntime import KERNELS, VARIANTS, Variant, onnxruntime
from tests.passes.models import Chain
from tests.plan.quantized import quantized
from tests.targets.forms import FORMS, IMAGE, KIND_FORMS, Form, around, conv
from tests.targets.forms import form as named

DEFAULT = {*KIND_FORMS.values(), "tokens"}


def test_every_kind_that_is_claimed_has_a_form_that_shows_it():
    """And the form counts the kernel that is claimed, where the kind has one of its own."""
    assert set(KIND_FORMS) == set(KERNELS)
    for kind, name in KIND_FORMS.items():
        claimed = KERNELS[kind].name
        assert not claimed or claimed in named(name).kernels, kind


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, id=form.name, marks=() if form.name in DEFAULT else pytest.mark.slow)
        for form in FORMS
    ],
)
def test_the_runtime_executes_what_the_plan_intends(form: Form):
    torch.manual_seed(0)
    example = (torch.randn(form.shape),)
    before, plan, after = quantized(form.build(), example)
    model = lower(after)
    shown = Counter(item.op_type for item in executed(model))
    intended = Counter(plan.intended.values())
    # A gate's own kernel is the runtime's; the plan speaks of the operator the user wrote.
    assert {name: count for name, count in form.kernels.items() if name in intended} == dict(intended)
    assert {name: shown[name] for name in form.kernels} == form.kernels
    if form.bridges is not None:
        assert shown["QuantizeLinear"] + shown["DequantizeLinear"] == form.bridges
    integer_bound(before, after, model, example)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 8])
def test_a_guarded_convolution_runs_in_float(groups: int):
    torch.manual_seed(0)
    example = (torch.randn(IMAGE),)
    before, plan, after = quantized(Chain(c=conv(), d=conv(groups=groups), e=conv()), example)
    assert plan.guarded == ("conv2d_1",)
    model = lower(after)
    shown = Counter(item.op_type for item in executed(model))
    assert (shown["QLinearConv"], shown["Conv"] + shown["FusedConv"]) == (2, 1)
    integer_bound(before, after, model, example)


@pytest.mark.slow
def test_without_the_guard_the_runtime_quantizes_what_the_plan_left_in_float():
    torch.manual_seed(0)
    model = Chain(c=conv(), d=conv(groups=2, bias=False), e=conv())
    before, plan, _ = quantized(model, (torch.randn(IMAGE),))
    after = QuantizeTensors(replace(plan, guarded=())).run(before).program
    shown = Counter(item.op_type for item in executed(lower(after)))
    assert plan.precision["conv2d_1"] == "float"
    assert shown["QLinearConv"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "repeat",
    [
        lambda x: torch.sigmoid(x) * x + torch.sigmoid(x),
        lambda x: torch.cat([x], 1),
        lambda x: x.mean((2, 3), keepdim=True).mean((2, 3), keepdim=True),
    ],
    ids=["equal operators", "concatenation of one", "mean of one pixel"],
)
def test_a_quantization_that_the_runtime_merges_with_an_equal_one_is_proved(repeat):
    """Found by random graphs: the file holds one operator for two that are equal."""
    torch.manual_seed(0)
    example = (torch.randn(IMAGE),)
    before, _, after = quantized(around(repeat)(), example)
    integer_bound(before, after, lower(after), example)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_files_for_every_cpu_run_in_integers_here_within_their_weight_bits(variant: Variant):
    form = named("linear_chain")
    example = (torch.randn(form.shape),)
    before, plan, after = quantized(form.build(), example, target=onnxruntime(variant.needs))
    assert {scheme.limit for scheme in plan.weights.values()} == {127 if variant.weight_bits == 8 else 64}
    model = lower(after)
    assert Counter(item.op_type for item in executed(model))["QGemm"] == 2
    integer_bound(before, after, model, example)

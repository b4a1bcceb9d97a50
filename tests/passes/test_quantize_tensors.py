"""The pass: before and after, what it leaves, and its integers against a slow integer twin."""

from __future__ import annotations

import json
from fractions import Fraction
from textwrap import dedent
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.execute import Executor
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.plan.quantization_plan import QuantizationPlan
from tests.architectures.programs import captured
from tests.passes.models import Apply, Chain
from tests.plan.quantized import planned, quantized

aten, integers = torch.ops.aten, torch.ops.quantized_decomposed
IMAGE = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)


def structure(program: Program) -> str:
    """The operators with their tensor operands, one a line: the listing without shapes and numbers."""
    lines = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            target = getattr(node.target, "_opname", None) or node.target.__name__
            lines.append(
                f"{node.name} = {target}({', '.join(source.name for source in node.all_input_nodes)})"
            )
    return "\n".join(lines)


def test_before_and_after():
    before, _, after = quantized(Chain(c=nn.Conv2d(3, 4, 3), r=nn.ReLU(), p=nn.MaxPool2d(2)), IMAGE)
    assert structure(before) == dedent("""\
        conv2d = conv2d(x, c_weight, c_bias)
        relu = relu(conv2d)
        max_pool2d = max_pool2d(relu)""")
    assert structure(after) == dedent("""\
        x_q = quantize_per_tensor(x)
        x_dq = dequantize_per_tensor(x_q)
        c_weight_int8_dq = dequantize_per_channel(c_weight_int8, c_weight_scale, zero_points_4)
        c_bias_int32_dq = dequantize_per_channel(c_bias_int32, c_bias_int32_scale, zero_points_4)
        conv2d = conv2d(x_dq, c_weight_int8_dq, c_bias_int32_dq)
        relu = relu(conv2d)
        relu_q = quantize_per_tensor(relu)
        relu_dq = dequantize_per_tensor(relu_q)
        max_pool2d = max_pool2d(relu_dq)""")
    state = after.module.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "c.weight_int8": torch.int8,
        "c.weight_scale": torch.float32,
        "c.bias_int32": torch.int32,
        "c.bias_int32_scale": torch.float32,
        "zero_points_4": torch.int64,
    }


def test_the_program_given_stays_as_it_was():
    program = capture(Chain(c=nn.Conv2d(3, 4, 3)).eval(), IMAGE)
    text, state = str(program), dict(program.module.state_dict())
    QuantizeTensors(planned(program)).run(program)
    assert str(program) == text
    assert all(
        program.module.state_dict()[name] is value or torch.equal(program.module.state_dict()[name], value)
        for name, value in state.items()
    )


def test_forms_change_where_the_kernel_wants_another():
    model = Apply(
        lambda m, x: m.l(F.silu(m.d(F.pad(m.c(x), (1, 1, 1, 1)))).mean((2, 3))),
        c=nn.Conv2d(3, 4, 3),
        d=nn.Conv2d(4, 5, 3),
        l=nn.Linear(5, 2),
    )
    _, _, after = quantized(model, IMAGE)
    lines = [line for line in structure(after).splitlines() if "int8" not in line.split(" = ")[0]]
    shown = "\n".join(lines)
    assert "pad = constant_pad_nd(conv2d_q)\npad_dq = dequantize_per_tensor(pad)" in shown
    assert "silu_gate = sigmoid(conv2d_1_dq)" in shown
    assert "silu = mul(conv2d_1_dq, silu_gate_dq)" in shown
    assert "mean_dq = dequantize_per_tensor(mean_q)\nmean_flat = squeeze(mean_dq)" in shown
    assert [tuple(node.meta["val"].shape)[1:] for node in after.graph.nodes if node.name == "mean"] == [
        (5, 1, 1)
    ]


def test_padding_in_float_is_quantized_after():
    """Found by a random graph: what is padded has no integers here."""
    model = Apply(lambda m, x: m.c(F.pad(torch.tanh(x), (1, 1, 1, 1))), c=nn.Conv2d(3, 4, 3))
    _, plan, after = quantized(model, IMAGE)
    assert plan.precision["pad"] == "float"
    assert "pad = pad(tanh)\npad_q = quantize_per_tensor(pad)" in structure(after)


def test_float_readers_read_the_original_where_there_is_one():
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        y = model.n(x)
        return y + model.l(y)

    _, _, after = quantized(Apply(forward, n=nn.LayerNorm(6), l=nn.Linear(6, 6)), (torch.randn(2, 3, 6),))
    assert "add = add(layer_norm, linear)" in structure(after)
    assert "linear = linear(layer_norm_dq, l_weight_int8_dq, l_bias)" in structure(after)


def test_float_readers_read_the_dequantized_where_there_is_nothing_else():
    _, _, after = quantized(Apply(lambda m, x: torch.tanh(m.c(x)), c=nn.Conv2d(3, 4, 3)), IMAGE)
    assert "tanh = tanh(conv2d_dq)" in structure(after)


def test_a_guarded_operator_keeps_its_weight_and_its_value():
    model = Chain(c=nn.Conv2d(3, 4, 3), t=nn.ConvTranspose2d(4, 4, 2, bias=False), d=nn.Conv2d(4, 2, 3))
    before, plan, after = quantized(model, IMAGE)
    assert plan.guarded == ("conv_transpose2d",)
    assert "conv_transpose2d = conv_transpose2d(conv2d_dq_by_channel, t_weight)" in structure(after)
    values = watch(after, IMAGE)
    scheme = plan.activations["conv2d"]
    whole = values["conv2d_q"].float() - scheme.zero_point
    torch.testing.assert_close(values["conv2d_dq_by_channel"], whole * scheme.scale)
    torch.testing.assert_close(
        values["conv_transpose2d"],
        F.conv_transpose2d(values["conv2d_dq_by_channel"], before.module.t.weight),
    )


def test_a_hard_sigmoid_is_what_quantization_clamps():
    model = Chain(c=nn.Conv2d(3, 4, 3), h=nn.Hardsigmoid(), d=nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model.c.weight.mul_(9)  # beyond three on both sides
    _, plan, after = quantized(model, IMAGE)
    assert plan.activations["hardsigmoid"].read_as == (1 / 256, 0)
    assert "hardsigmoid_q = quantize_per_tensor(conv2d)" in structure(after)
    assert "hardsigmoid_dq = dequantize_per_tensor(hardsigmoid_q)" in structure(after)
    values = watch(after, IMAGE)
    wanted = F.hardsigmoid(values["conv2d"])
    assert wanted.min() == 0 and wanted.max() == 1
    assert (values["hardsigmoid_dq"] - wanted).abs().max() <= 1 / 256
    scales = torch.tensor(plan.weights["d.weight"].scales) / 256
    torch.testing.assert_close(torch.tensor(plan.biases["conv2d_1"].scales), scales)


def test_hard_swish_keeps_its_value_within_the_steps_of_its_gate():
    model = Chain(c=nn.Conv2d(3, 4, 3), h=nn.Hardswish(), d=nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model.c.weight.mul_(9)
    _, _, after = quantized(model, IMAGE)
    assert "hardswish_gate = leaky_relu(conv2d_dq)" in structure(after)
    values = watch(after, IMAGE)
    x = values["conv2d_dq"]
    # The gate is off by half a step of its input, and by one of its own where it is one.
    bound = x.abs() * (1 / 256 + 3 / 128 / 12) + 1e-5
    assert ((values["hardswish"] - F.hardswish(x)).abs() <= bound).all()


def test_layout_after_a_hard_sigmoid_repeats_what_its_readers_see():
    model = Apply(
        lambda m, x: m.d(F.max_pool2d(F.hardsigmoid(m.c(x)), 2)), c=nn.Conv2d(3, 4, 3), d=nn.Conv2d(4, 2, 1)
    )
    _, plan, _ = quantized(model, IMAGE)
    pooled = plan.activations["max_pool2d"]
    assert (pooled.scale, pooled.zero_point, pooled.read_as) == (1 / 256, 0, None)
    assert QuantizationPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_shared_weight_is_stored_once():
    model = Apply(lambda m, x: m.l(torch.relu(m.l(x))), l=nn.Linear(6, 6))
    _, _, after = quantized(model, (torch.randn(2, 6),))
    assert [name for name in after.module.state_dict() if name.endswith("_int8")] == ["l.weight_int8"]
    assert [name for name in after.module.state_dict() if "_int32" in name and "scale" not in name] == [
        "l.bias_int32",
        "l.bias_int32_1",
    ]


def test_a_plan_for_another_program_is_refused():
    _, plan, after = quantized(Chain(c=nn.Conv2d(3, 4, 3)), IMAGE)
    with pytest.raises(InputError, match="names the"):
        QuantizeTensors(plan).run(capture(Chain(l=nn.Linear(6, 4)).eval(), IMAGE))
    with pytest.raises(InputError, match=r"names the parameter 'c\.weight'"):
        QuantizeTensors(plan).run(after)


def test_nothing_to_do_returns_the_same_program():
    program = capture(Chain(g=nn.GELU()), IMAGE)
    outcome = QuantizeTensors(planned(program)).run(program)
    assert outcome.program is program
    assert [item.site for item in outcome.declined] == ["gelu"]


class _Watch(Executor):
    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.values: dict[str, Any] = {}

    def after(self, node: fx.Node, value: Any) -> Any:
        self.values[node.name] = value
        return value


def watch(program: Program, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Every value of a run by node name."""
    watcher = _Watch(program)
    with torch.no_grad():
        watcher.run_flat(inputs)
    return watcher.values


def integer_twin(node: fx.Node, values: dict[str, Any]) -> Tensor:
    """The float result of a convolution or linear from integers alone: exact sums, one scale per channel."""
    source, weight, bias = (node.args[index].args for index in range(3))
    whole = values[source[0].name].double() - source[2]
    rows = values[weight[0].name].double()
    unit = source[1] * values[weight[1].name].double()
    if node.target is aten.linear.default:
        return (F.linear(whole, rows) + values[bias[0].name].double()) * unit
    sums = F.conv2d(whole, rows, values[bias[0].name].double(), *node.args[3:])
    return sums * unit.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("name", ["resnet_basic", "mobilenet_hardswish"])
def test_every_contraction_agrees_with_the_integer_twin_to_one_step(name):
    program = FuseBatchNorm().run(captured(name)).program
    plan = planned(program)
    after = QuantizeTensors(plan).run(program).program
    well_formed(after)
    values = watch(after, program.example.args)
    checked = 0
    for node in after.graph.nodes:
        if (
            node.target not in (aten.conv2d.default, aten.linear.default)
            or plan.precision.get(node.name) != "int8"
        ):
            continue
        twin = integer_twin(node, values)
        # One step of the output's own scale, or, where the output is no integer, float32 against exact sums.
        step = plan.activations[node.name].scale if node.name in plan.activations else 1e-4 * twin.abs().max()
        assert (twin - values[node.name]).abs().max() <= step
        checked += 1
    assert checked == len(plan.weights)


def test_the_twin_notices_a_wrong_zero_point():
    _, _, after = quantized(Chain(c=nn.Conv2d(3, 4, 3)), IMAGE)
    values = watch(after, IMAGE)
    node = next(node for node in after.graph.nodes if node.target is aten.conv2d.default)
    exact = integer_twin(node, values)
    values["x_q"] = values["x_q"].clamp(max=254) + 1
    assert (integer_twin(node, values) - exact).abs().max() > 1e-3 * exact.abs().max()


def test_quantized_values_agree_with_exact_rounding_to_one_step():
    _, plan, after = quantized(Chain(c=nn.Conv2d(3, 4, 3), r=nn.ReLU(), d=nn.Conv2d(4, 2, 3)), IMAGE)
    values = watch(after, IMAGE)
    for name, scheme in plan.activations.items():
        exact = [
            min(max(round(Fraction(value) / Fraction(scheme.scale)) + scheme.zero_point, 0), 255)
            for value in values[name].flatten().tolist()
        ]
        stored = values[f"{name}_q"].flatten().tolist()
        assert max(abs(one - two) for one, two in zip(stored, exact, strict=True)) <= 1


@pytest.mark.parametrize("name", ["unet", "vit_packed", "preactivation_resnet"])
def test_architectures_stay_well_formed_and_near_the_float_program(name):
    program = captured(name)
    after = QuantizeTensors(planned(program)).run(program).program
    well_formed(after)
    with torch.no_grad():
        exact, found = program(*program.example.args), after(*program.example.args)
    assert (found - exact).norm() <= 0.15 * exact.norm()
    assert (found - exact).norm() > 0

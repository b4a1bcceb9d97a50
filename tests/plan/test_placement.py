"""Where integers go: what fuses, what shares a scale, what stays in float and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.analysis.calibration import calibrate
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.ops.quantization import Kind
from fxcompress.plan.placement import NOT_CHOSEN, place
from fxcompress.plan.quantization_plan import Quantize
from fxcompress.targets.portable import portable
from fxcompress.targets.target import Scheme
from tests.passes.models import Apply, Chain
from tests.plan.quantized import VNNI, placed, planned

IMAGE = (torch.randn(2, 16, 8, 8),)
ROWS = (torch.randn(3, 12),)
TOKENS = (torch.randn(2, 5, 12),)


def conv(i: int = 16, o: int = 16, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def test_convolution_and_rectifier_are_one():
    found = placed(Chain(c=conv(), r=nn.ReLU(), d=conv()), IMAGE)
    assert found.kernels == {"conv2d": "QLinearConv", "relu": "", "conv2d_1": "QLinearConv"}
    assert found.tensors == {"x": "x", "relu": "relu", "conv2d_1": "conv2d_1"}
    assert found.integer_only == {"relu", "conv2d_1"}
    assert not found.declined


@pytest.mark.parametrize("clamp", [nn.ReLU6(), nn.Hardtanh(0.0, 2.5)])
def test_a_clamp_from_zero_is_absorbed(clamp):
    assert placed(Chain(c=conv(), r=clamp), IMAGE).kernels["conv2d"] == "QLinearConv"
    assert "hardtanh" in placed(Chain(c=conv(), r=clamp), IMAGE).tensors


def test_a_clamp_that_does_not_start_at_zero_stays():
    found = placed(Chain(c=conv(), r=nn.Hardtanh(-1.0, 1.0)), IMAGE)
    assert found.tensors == {"x": "x", "conv2d": "conv2d"}
    assert "hardtanh" in found.declined


def test_a_rectifier_beside_another_reader_is_not_absorbed():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = model.c(x)
        return model.d(torch.relu(y)) + y

    found = placed(Apply(forward, c=conv(), d=conv()), IMAGE)
    assert {"conv2d", "relu"} <= set(found.tensors)
    assert found.declined == {"relu": "the rectifier could not be absorbed by the operator before it"}
    assert found.kernels["add"] == "QLinearAdd"


def test_a_residual_addition_absorbs_its_rectifier():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(model.c(x))
        return model.e(torch.relu(model.d(y) + y))

    found = placed(Apply(forward, c=conv(), d=conv(), e=conv()), IMAGE)
    assert (found.kernels["add"], found.kernels["relu_1"]) == ("QLinearAdd", "")
    assert set(found.tensors) == {"x", "relu", "conv2d_1", "relu_1", "conv2d_2"}


def test_pooling_and_layout_share_a_scale_up_to_the_linear():
    model = Chain(c=conv(), r=nn.ReLU(), p=nn.MaxPool2d(2), f=nn.Flatten(), l=nn.Linear(256, 10))
    found = placed(model, IMAGE)
    assert found.tensors == {"x": "x", "relu": "relu", "max_pool2d": "relu", "flatten": "relu"}
    assert found.kernels["linear"] == "QGemm"
    assert found.roots() == ["x", "relu"]


def test_layout_that_no_integer_kernel_reads_stays_in_float():
    found = placed(Apply(lambda m, x: torch.tanh(m.c(x).flatten(2).transpose(1, 2)), c=conv()), IMAGE)
    assert found.kernels == {"conv2d": "QLinearConv"}
    assert found.tensors == {"x": "x", "conv2d": "conv2d"}


def test_all_parts_of_a_split_are_quantized_when_one_is():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = model.c(x).chunk(2, 1)
        return model.d(a).flatten(1).tanh() + b.flatten(1).tanh()

    found = placed(Apply(forward, c=conv(), d=conv(8, 8)), IMAGE)
    assert found.tensors["getitem"] == found.tensors["getitem_1"] == "conv2d"


def test_concatenation_has_a_scale_of_its_own():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model.e(torch.cat([model.c(x), model.d(x)], 1))

    found = placed(Apply(forward, c=conv(), d=conv(), e=conv(32)), IMAGE)
    assert found.kernels["cat"] == "QLinearConcat"
    assert found.tensors["cat"] == "cat"


@pytest.mark.parametrize(
    ("pool", "kernel"),
    [
        (nn.AdaptiveAvgPool2d(1), "QLinearGlobalAveragePool"),
        (nn.AvgPool2d(2), "QLinearAveragePool"),
        (nn.AdaptiveAvgPool2d(2), None),
    ],
)
def test_average_pooling(pool, kernel):
    found = placed(Chain(c=conv(), p=pool, d=conv(k=1)), IMAGE)
    name = next(name for name in [*found.kernels, *found.declined] if "pool" in name)
    assert found.kernels.get(name) == kernel


@pytest.mark.parametrize(
    ("dims", "kernel"), [((2, 3), "QLinearGlobalAveragePool"), ((1,), None), ((3,), None)]
)
def test_only_a_mean_over_height_and_width_is_a_pooling(dims, kernel):
    found = placed(Apply(lambda m, x: m.c(x).mean(dims), c=conv()), IMAGE)
    assert found.kernels.get("mean") == kernel


def test_linears_chain_through_integers_and_end_in_float():
    model = Chain(l=nn.Linear(12, 20), r=nn.ReLU(), m=nn.Linear(20, 4))
    found = placed(model, ROWS)
    assert found.kernels == {"linear": "QGemm", "relu": "", "linear_1": "QGemm"}
    assert set(found.tensors) == {"x", "relu"}
    assert not found.integer_only


def test_a_linear_on_tokens_hands_out_floats():
    found = placed(Chain(n=nn.LayerNorm(12), l=nn.Linear(12, 20), g=nn.GELU(), m=nn.Linear(20, 12)), TOKENS)
    assert found.kernels == {"linear": "MatMulIntegerToFloat", "linear_1": "MatMulIntegerToFloat"}
    assert set(found.tensors) == {"layer_norm", "gelu"}


def test_a_residual_stream_in_float_stays_in_float():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + model.l(model.n(x))

    found = placed(Apply(forward, n=nn.LayerNorm(12), l=nn.Linear(12, 12)), TOKENS)
    assert "its neighbours are in float" in found.declined["add"]


def test_squeeze_and_excitation_converts_only_the_small_tensors():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(model.c(x))
        return model.e(y * F.hardsigmoid(model.d(F.adaptive_avg_pool2d(y, 1))))

    found = placed(Apply(forward, c=conv(), d=conv(k=1), e=conv(k=1)), IMAGE)
    assert found.kernels["mul"] == "QLinearMul"
    assert {"hardsigmoid", "mul"} <= set(found.tensors)
    assert found.kernels["hardsigmoid"] == "", "what makes its input clamps"
    assert "conv2d_1" not in found.tensors
    assert found.declined == {}


def test_a_hard_sigmoid_of_what_others_read_changes_the_scale():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = model.c(x)
        return model.e(y * F.hardsigmoid(y))

    found = placed(Apply(forward, c=conv(), e=conv()), IMAGE)
    assert found.kernels["hardsigmoid"] == "QLinearLeakyRelu"
    assert {"conv2d", "hardsigmoid", "mul"} <= set(found.tensors)


def test_only_the_operators_that_were_chosen_run_in_integers():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(model.c(x))
        return model.e(model.d(y) + y)

    program = capture(Apply(forward, c=conv(), d=conv(), e=conv()).eval(), IMAGE)
    found = place(program, VNNI, integers={"conv2d", "relu", "add"})
    assert found.kernels == {"conv2d": "QLinearConv", "relu": "", "add": "QLinearAdd"}
    assert found.declined["conv2d_1"] == found.declined["conv2d_2"] == NOT_CHOSEN
    assert set(found.tensors) == {"x", "relu", "conv2d_1", "add"}
    assert place(program, VNNI, integers=set()).kernels == {}


def test_a_gate_after_a_convolution_runs_in_integers_and_after_a_linear_does_not():
    assert placed(Chain(c=conv(), s=nn.SiLU(), d=conv()), IMAGE).kernels["silu"] == "QLinearMul"
    assert "silu" in placed(Chain(l=nn.Linear(12, 12), s=nn.SiLU(), m=nn.Linear(12, 2)), ROWS).declined


def test_padding_with_zeros_is_done_on_integers():
    model = Apply(lambda m, x: m.d(F.pad(m.c(x), (1, 1, 1, 1))), c=conv(), d=conv())
    assert placed(model, IMAGE).tensors["pad"] == "conv2d"
    model = Apply(lambda m, x: m.d(F.pad(m.c(x), (1, 1, 1, 1), value=1.0)), c=conv(), d=conv())
    assert placed(model, IMAGE).declined == {"pad": "it does not pad with zeros"}


@pytest.mark.parametrize(("groups", "int8"), [(1, True), (2, False), (4, False), (16, True)])
def test_narrow_groups_stay_in_float_and_depthwise_does_not(groups, int8):
    found = placed(Chain(c=conv(), d=conv(groups=groups), e=conv()), IMAGE)
    assert ("conv2d_1" in found.kernels) == int8
    assert found.guarded == ([] if int8 else ["conv2d_1"])


def test_a_transposed_convolution_between_integers_is_guarded():
    found = placed(Chain(c=conv(), t=nn.ConvTranspose2d(16, 8, 3), d=conv(8)), IMAGE)
    assert found.declined == {"conv_transpose2d": "ConvTranspose has no integer kernel"}
    assert found.guarded == ["conv_transpose2d"]
    alone = placed(Chain(t=nn.ConvTranspose2d(16, 8, 3)), IMAGE)
    assert alone.guarded == []


def test_a_shared_weight_is_stored_once_or_not_at_all():
    linear = nn.Linear(12, 12)
    twice = Apply(lambda m, x: m.l(torch.relu(m.l(x))), l=linear)
    assert set(placed(twice, ROWS).kernels) == {"linear", "relu", "linear_1"}
    transposed = Apply(lambda m, x: F.linear(x, m.w) @ m.w, w=torch.randn(12, 12))
    assert set(placed(transposed, ROWS).declined.values()) == {
        "its weight is also read by matmul, along another axis",
        "its weight is also read by linear, along another axis",
    }


def test_a_head_tied_to_a_table_says_so():
    def forward(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(F.embedding(ids, model.w)), model.w)

    found = placed(Apply(forward, w=torch.randn(9, 12)), (torch.tensor([[1, 2, 3], [4, 5, 6]]),))
    assert found.declined["linear"] == "its weight is also read by embedding, which stays in float"
    assert not found.kernels


def test_a_computed_weight_is_declined():
    model = Apply(lambda m, x: F.linear(x, m.w * 2), w=torch.randn(4, 12))
    assert placed(model, ROWS).declined["linear"] == "its weight is computed, not stored"


def test_a_product_of_activations_is_declined():
    found = placed(Apply(lambda m, x: x @ x.transpose(1, 2)), TOKENS)
    assert found.declined["matmul"].startswith("both factors are activations")


@pytest.mark.parametrize("pattern", ["conv2d_1", "d", "d.weight", "d*"])
def test_operators_are_excluded_by_node_module_or_parameter(pattern):
    found = placed(Chain(c=conv(), d=conv(), e=conv()), IMAGE, pattern)
    assert found.declined == {"conv2d_1": "excluded by name"}
    assert {"conv2d", "conv2d_2"} <= set(found.kernels)


def test_float64_and_half_are_declined():
    model = Chain(l=nn.Linear(12, 3)).double()
    assert (
        placed(model, (torch.randn(2, 12).double(),)).declined["linear"] == "it does not compute in float32"
    )


def test_an_unknown_operator_is_reported_and_indices_are_not():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.special.erfinv(model.l(x).tanh()) + torch.arange(3)

    found = placed(Apply(forward, l=nn.Linear(12, 3)), ROWS)
    assert found.declined["special_erfinv" if "special_erfinv" in found.declined else "erfinv"].startswith(
        "no quan"
    )
    assert "arange" not in found.declined


def test_deep_chains_of_additions_are_placed_quickly():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = model.c(x)
        for _ in range(60):
            y = y + torch.sigmoid(y)
        return model.d(y)

    found = placed(Apply(forward, c=conv(), d=conv()), (torch.randn(2, 16, 4, 4),))
    assert found.kernels["add_59"] == "QLinearAdd"


class Shared(nn.Module):
    """Two concatenations with an operand in common, the other operands of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = (nn.Conv2d(3, 4, 1) for _ in range(3))
        self.e, self.f = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, d = self.a(x), self.b(50.0 * x), self.d(x)
        return self.e(torch.cat([a, b], 1)) + self.f(torch.cat([a, d], 1))


def test_a_shared_scale_covers_all_that_share_it():
    program = capture(Shared().eval(), (torch.randn(4, 3, 6, 6),))
    plan = planned(program, target=portable())
    owners = {
        plan.activations[name].shares or name for name in ("conv2d", "conv2d_1", "conv2d_2", "cat", "cat_1")
    }
    assert len(owners) == 1
    seen = calibrate(program, [program.example.args], ["conv2d_1", "cat", "cat_1"])
    low, high = plan.activations[owners.pop()].affine.range
    for found in seen.values():
        assert low <= found.low + 0.51 * (high - low) / 255
        assert found.high <= high + 0.51 * (high - low) / 255


def test_a_mean_with_the_scale_of_its_input_does_not_narrow_it():
    target = replace(portable(), shared_scales=frozenset({Kind.GLOBAL_AVERAGE}))
    model = Apply(lambda m, x: m.d(m.c(x).mean((2, 3), keepdim=True)), c=conv(), d=conv(k=1))
    program = capture(model.eval(), (torch.randn(4, 16, 9, 9),))
    plan = planned(program, target=target)
    (seen,) = calibrate(program, [program.example.args], ["conv2d"]).values()
    low, high = plan.activations["conv2d"].affine.range
    assert high - low >= 0.99 * (seen.high - seen.low)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"activations": Scheme("uint8", bits=7)}, "all 8 bits")],
)
def test_a_target_that_nothing_would_honour_is_refused(fields: dict, said: str):
    with pytest.raises(InputError, match=said):
        replace(portable(), **fields)


@pytest.mark.parametrize("exclude", [None, 3, "head*", ["a", 1]])
def test_exclude_is_a_list_of_patterns(exclude: object):
    with pytest.raises(InputError, match="list of patterns"):
        Quantize(exclude=exclude)

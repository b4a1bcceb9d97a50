"""Packed linears are split where that frees a width, and only there; the program computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.passes.split_packed_linears import SplitPackedLinears
from fxcompress.plan.pruning_plan import make_plan
from tests.architectures.programs import EXACT, call, largest_difference, random_plan, zeroed
from tests.passes import packed
from tests.passes.models import Apply, assert_same_function


@cache
def captured(name: str) -> Program:
    """One of the models between two linears, so that its width is free; in float64."""
    return between_linears(packed.MODELS[name]).to(torch.float64)


def between_linears(build: Callable[[], nn.Module]) -> Program:
    torch.manual_seed(0)
    layer = build()
    model = nn.Sequential(nn.Linear(packed.WIDTH, packed.WIDTH), layer, nn.Linear(packed.WIDTH, 4))
    return capture(model.eval(), torch.randn(3, 6, packed.WIDTH))


def widths(program: Program) -> list[int]:
    return sorted(group.size for group in analyse(program).groups)


each_model = pytest.mark.parametrize("name", packed.MODELS)


@each_model
def test_the_value_has_a_width_of_its_own(name: str) -> None:
    """One more head width is free; nothing else changes, to the last digit but rounding."""
    program = captured(name)
    before = str(program)
    outcome = SplitPackedLinears().run(program)
    well_formed(outcome.program)
    assert widths(outcome.program) == sorted([*widths(program), packed.HEAD])
    assert str(program) == before
    assert len(outcome.changed) == 1
    assert_same_function(program, outcome.program)


@each_model
def test_a_plan_is_stated_in_the_users_names_and_coordinates(name: str) -> None:
    """Zero, in the user's own program, what `plan.kept` says is gone: the pruned program computes that."""
    program = captured(name)
    loose = SplitPackedLinears().run(program).program
    plan = random_plan(analyse(loose), 3)
    stored = {str(node.target) for node in walk.tensor_nodes(program)}
    assert set(plan.kept) <= stored
    assert plan.rewrites == ("split-packed-linears",)
    pruned = PruneChannels(plan).run(program).program
    inputs = (torch.randn(2, 6, packed.WIDTH, dtype=torch.float64),)
    found, wanted = (call(item, inputs) for item in (pruned, zeroed(program, plan)))
    assert largest_difference(found, wanted) < EXACT


def test_the_parts_of_alternating_rows_are_named_by_position() -> None:
    """Rows are (2 heads, 3, 8): value rows of head 0 are 16 to 23."""
    loose = SplitPackedLinears().run(captured("interleaved")).program
    analysis = analyse(loose)
    plan = make_plan(analysis, {"1.qkv.weight_2[0]:1": (0, 7)})
    stay = [*range(16), 16, 23, *range(24, 40), 40, 47]
    assert plan.kept["1.qkv.weight"] == {0: tuple(stay)}
    assert plan.kept["1.qkv.bias"] == {0: tuple(stay)}
    assert plan.kept["1.out.weight"] == {1: (0, 7, 8, 15)}


def two_parts(model: nn.Module, x: Tensor) -> Tensor:
    """Two parts of a linear, of (2 parts, 3, 4) rows: the first as it is, the second through a tanh."""
    parts = model.both(x).reshape(2, 2, 12)
    return model.read(parts.select(1, 0)) + model.read_too(parts.select(1, 1).tanh())


def applied(function: Callable[[nn.Module, Tensor], object], **parts: nn.Module | Tensor) -> Program:
    torch.manual_seed(0)
    layers = {"both": nn.Linear(3, 24), "read": nn.Linear(12, 5), "read_too": nn.Linear(12, 5)}
    return capture(Apply(function, **{**layers, **parts}).eval(), torch.randn(2, 3), dynamic_shapes=())


def test_listing_before_and_after() -> None:
    program = applied(two_parts)
    outcome = SplitPackedLinears().run(program)
    assert str(program).splitlines()[2:-2] == [
        "tensors:",
        "  both_weight: f32[24, 3] parameter both.weight",
        "  both_bias: f32[24] parameter both.bias",
        "  read_weight: f32[5, 12] parameter read.weight",
        "  read_bias: f32[5] parameter read.bias",
        "  read_too_weight: f32[5, 12] parameter read_too.weight",
        "  read_too_bias: f32[5] parameter read_too.bias",
        "operators:",
        "  linear: f32[2, 24] = linear(x, both_weight, both_bias)  # both",
        "  reshape: f32[2, 2, 12] = reshape(linear, [2, 2, 12])",
        "  select: f32[2, 12] = select.int(reshape, 1, 0)",
        "  linear_1: f32[2, 5] = linear(select, read_weight, read_bias)  # read",
        "  select_1: f32[2, 12] = select.int(reshape, 1, 1)",
        "  tanh: f32[2, 12] = tanh(select_1)",
        "  linear_2: f32[2, 5] = linear(tanh, read_too_weight, read_too_bias)  # read_too",
        "  add: f32[2, 5] = add.Tensor(linear_1, linear_2)",
    ]
    assert str(outcome.program).splitlines()[2:-2] == [
        "tensors:",
        "  both_weight_0: f32[12, 3] parameter both.weight_0",
        "  both_weight_1: f32[12, 3] parameter both.weight_1",
        "  both_bias_0: f32[12] parameter both.bias_0",
        "  both_bias_1: f32[12] parameter both.bias_1",
        "  read_weight: f32[5, 12] parameter read.weight",
        "  read_bias: f32[5] parameter read.bias",
        "  read_too_weight: f32[5, 12] parameter read_too.weight",
        "  read_too_bias: f32[5] parameter read_too.bias",
        "operators:",
        "  linear_3: f32[2, 12] = linear(x, both_weight_0, both_bias_0)  # both",
        "  linear_4: f32[2, 12] = linear(x, both_weight_1, both_bias_1)  # both",
        "  reshape_1: f32[2, 1, 12] = reshape(linear_3, [2, 1, 12])",
        "  reshape_2: f32[2, 1, 12] = reshape(linear_4, [2, 1, 12])",
        "  select_2: f32[2, 12] = select.int(reshape_1, 1, 0)",
        "  linear_1: f32[2, 5] = linear(select_2, read_weight, read_bias)  # read",
        "  select_3: f32[2, 12] = select.int(reshape_2, 1, 0)",
        "  tanh: f32[2, 12] = tanh(select_3)",
        "  linear_2: f32[2, 5] = linear(tanh, read_too_weight, read_too_bias)  # read_too",
        "  add: f32[2, 5] = add.Tensor(linear_1, linear_2)",
    ]


def whole(model: nn.Module, x: Tensor) -> Tensor:
    rows = model.both(x)
    parts = rows.reshape(2, 2, 12)
    return model.read(parts[:, 0]) + model.read_too(parts[:, 1]) + rows.sum()


def unread(model: nn.Module, x: Tensor) -> Tensor:
    return model.read(model.both(x).reshape(2, 2, 12)[:, 0])


def overlapping(model: nn.Module, x: Tensor) -> Tensor:
    parts = model.both(x).reshape(2, 4, 6)
    return model.read(parts[:, :2].flatten(1)) + model.read_too(parts[:, 1:3].flatten(1)) + parts[:, 3].sum()


def added(model: nn.Module, x: Tensor) -> Tensor:
    parts = model.both(x).reshape(2, 2, 12)
    return model.read(parts[:, 0] * parts[:, 1])


def chunks(model: nn.Module, x: Tensor) -> Tensor:
    first, second = model.both(x).chunk(2, -1)
    return model.read(first) + model.read_too(second)


def two_ways(model: nn.Module, x: Tensor) -> Tensor:
    rows = model.both(x)
    parts, others = rows.reshape(2, 2, 12), rows.reshape(2, 3, 8)
    return (
        model.read(parts[:, 0]) + model.read_too(parts[:, 1]) + sum(item.sum() for item in others.unbind(1))
    )


def weight_read_too(model: nn.Module, x: Tensor) -> Tensor:
    return two_parts(model, x) + model.both.weight.sum()


def bias_read_too(model: nn.Module, x: Tensor) -> Tensor:
    return two_parts(model, x) + nn.functional.linear(x, model.other, model.both.bias).sum()


DECLINED: dict[Callable[[nn.Module, Tensor], Tensor], str] = {
    whole: "sum_1 reads it whole",
    unread: "nothing reads some of its rows",
    overlapping: "its parts overlap",
    added: "its parts have one width anyhow",
    chunks: "its parts have widths of their own already",
    two_ways: "it is taken apart in two ways",
    weight_read_too: "its weight is also read in another way",
    bias_read_too: "both.bias is the bias of another linear too",
}


@pytest.mark.parametrize("function", DECLINED, ids=lambda function: function.__name__)
def test_declined(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Declined means untouched, with the reason."""
    program = applied(function, other=torch.randn(24, 3))
    outcome = SplitPackedLinears().run(program)
    assert outcome.program is program
    assert outcome.changed == ()
    assert [item.reason for item in outcome.declined] == [DECLINED[function]]


def test_a_part_that_is_taken_apart_itself_is_not_seen() -> None:
    """A known limit: `whole[0]` and then `whole[1:].unbind(0)`."""
    outcome = SplitPackedLinears().run(between_linears(lambda: packed.Packed(packed.first_and_rest)))
    assert [item.reason for item in outcome.declined] == ["its parts have one width anyhow"]


def test_what_no_pattern_fits_is_not_mentioned() -> None:
    """A computed weight, a grouped convolution, a linear that nothing takes apart."""
    layers = {
        "norm": nn.utils.parametrizations.weight_norm(nn.Linear(3, 24)),
        "conv": nn.Conv1d(24, 24, 1, groups=2),
    }

    def function(model: nn.Module, x: Tensor) -> Tensor:
        rows = model.conv(model.norm(x)[:, :, None])
        return model.read(model.read_too(rows.reshape(2, 2, 12).prod(1)).tanh().repeat(1, 3)[:, :12])

    outcome = SplitPackedLinears().run(applied(function, **layers))
    assert (outcome.changed, outcome.declined) == ((), ())


def test_a_second_run_changes_nothing() -> None:
    loose = SplitPackedLinears().run(captured("timm")).program
    again = SplitPackedLinears().run(loose)
    assert again.program is loose


def test_frozen_weights_stay_frozen_and_buffers_buffers() -> None:
    program = captured("timm").copy(share=False)
    dict(program.module.named_parameters())["1.qkv.weight"].requires_grad_(False)
    loose = SplitPackedLinears().run(program).program
    found = {name: item.requires_grad for name, item in loose.module.named_parameters() if "qkv" in name}
    assert found == {f"1.qkv.{name}_{n}": name == "bias" for name in ("weight", "bias") for n in range(3)}
    assert "1.qkv.weight" not in loose.module.state_dict()

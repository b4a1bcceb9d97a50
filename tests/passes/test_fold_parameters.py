"""Computations on parameters alone are stored; state, chance, stored integers and large results are left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.change_floats import ChangeFloats
from fxcompress.passes.fold_parameters import FoldParameters
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.quantize_weights import QuantizeWeights
from tests.passes.models import Apply, Case, Chain, assert_same_function, operators


def program_of(function: Callable[[nn.Module, Tensor], object], **parts: nn.Module | Tensor) -> Program:
    return capture(Apply(function, **parts).eval(), torch.randn(2, 3))


class BiasTable(nn.Module):
    """A relative position bias as in Swin: a table of parameters, looked up with fixed indices."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 2))
        self.register_buffer("index", torch.tensor([[2, 3, 4], [1, 2, 3], [0, 1, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(3, 3, 2).permute(2, 0, 1)
        return torch.softmax(x[:, None, :, None] + bias, -1)


def test_weight_norm_is_stored_and_then_takes_a_batch_norm() -> None:
    model = Chain(c=parametrizations.weight_norm(nn.Conv1d(3, 4, 2)), b=nn.BatchNorm1d(4)).eval()
    program = capture(model, torch.randn(2, 3, 5)).to(torch.float64)
    assert operators(program) == ["_weight_norm.default", "conv1d.default", "batch_norm.default"]
    outcome = FoldParameters().run(program)
    assert operators(outcome.program) == ["conv1d.default", "batch_norm.default"]
    assert len(outcome.changed) == 1
    assert not [
        name
        for name, _ in outcome.program.module.named_parameters()
        if "parametrizations.weight.original" in name
    ]
    well_formed(outcome.program)
    assert_same_function(program, outcome.program, 0.0)
    fused = FuseBatchNorm().run(outcome.program)
    assert operators(fused.program) == ["conv1d.default"]
    assert_same_function(program, fused.program)


def test_bias_table_is_stored() -> None:
    program = capture(BiasTable().eval(), torch.randn(2, 3))
    before = str(program)
    outcome = FoldParameters().run(program)
    assert not {"index.Tensor", "permute.default"} & set(operators(outcome.program))
    assert "table" not in dict(outcome.program.module.named_parameters())
    assert_same_function(program, outcome.program, 0.0)
    assert str(program) == before


def test_listing_before_and_after() -> None:
    program = program_of(lambda m, x: x @ (m.w * 2).t(), w=torch.randn(4, 3))
    outcome = FoldParameters().run(program)
    assert str(program).splitlines()[2:7] == [
        "tensors:",
        "  w: f32[4, 3] parameter w",
        "operators:",
        "  mul: f32[4, 3] = mul.Tensor(w, 2)",
        "  t: f32[3, 4] = t(mul)",
    ]
    assert str(outcome.program).splitlines()[2:6] == [
        "tensors:",
        "  folded_t: f32[3, 4] parameter folded_t",
        "operators:",
        "  matmul: f32[batch, 4] = matmul(x, folded_t)",
    ]


class Mixing(nn.Module):
    """A softmax over a parameter, computed in a module that has a submodule of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))
        self.softmax = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(x @ torch.softmax(self.w, 0))


def test_a_stored_tensor_keeps_clear_of_a_submodule_of_the_same_name() -> None:
    program = capture(Chain(m=Mixing()).eval(), torch.randn(2, 3))
    outcome = FoldParameters().run(program)
    assert outcome.changed == ("softmax stored as m.folded_softmax",)
    assert_same_function(program, outcome.program, 0.0)


FOLDED = {
    "transpose": lambda m, x: x @ m.w.t(),
    "scaled": lambda m, x: x @ (m.w * 2 + 1).t(),
    "normalised": lambda m, x: nn.functional.linear(x, nn.functional.normalize(m.w, dim=1)),
    "joined": lambda m, x: nn.functional.linear(x, torch.cat([m.w, m.w.flip(0)])),
    "split": lambda m, x: x @ torch.chunk(m.w, 2)[0].t() + x @ torch.chunk(m.w, 2)[1].t(),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folds_to_the_same_bits(name: str) -> None:
    program = program_of(FOLDED[name], w=torch.randn(4, 3))
    outcome = FoldParameters().run(program)
    assert len(operators(outcome.program)) < len(operators(program))
    assert "w" not in dict(outcome.program.module.named_parameters())
    assert all(isinstance(value, nn.Parameter) for value in outcome.program.module.parameters())
    assert list(outcome.program.module.parameters())
    assert outcome.declined == ()
    assert_same_function(program, outcome.program, 0.0)


def test_nothing_to_fold_returns_the_program_itself() -> None:
    program = capture(nn.Linear(3, 4).eval(), torch.randn(2, 3))
    outcome = FoldParameters().run(program)
    assert outcome.program is program
    assert outcome.changed == ()


def test_a_parameter_that_is_still_used_stays() -> None:
    program = program_of(lambda m, x: (x @ m.w.t()) @ m.w, w=torch.randn(4, 3))
    outcome = FoldParameters().run(program)
    assert len(outcome.changed) == 1
    assert "w" in dict(outcome.program.module.named_parameters())
    assert_same_function(program, outcome.program, 0.0)


def test_stored_integers_are_not_turned_into_floats() -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.randint(-127, 128, (4, 3), dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
            return nn.functional.linear(x, dequantize(self.w, 0.1, 0, -127, 127, torch.int8))

    program = capture(Stored().eval(), torch.randn(2, 3))
    outcome = FoldParameters().run(program)
    assert outcome.program is program
    assert "quantized_decomposed.dequantize_per_tensor.default" in operators(program)


def test_an_expanded_parameter_is_declined_when_large() -> None:
    program = program_of(lambda m, x: x[:, None] + m.w.expand(1000, 3), w=torch.randn(1, 3))
    outcome = FoldParameters(small=4096).run(program)
    assert outcome.program is program
    assert [(decline.site, decline.reason) for decline in outcome.declined] == [
        ("expand", "storing it takes 12000 bytes and frees 12")
    ]
    assert FoldParameters().run(program).changed, "small results are stored"


def test_what_comes_before_a_declined_site_is_still_folded() -> None:
    program = program_of(lambda m, x: x[:, None] + (m.w * 2).expand(1000, 3), w=torch.randn(1, 3))
    outcome = FoldParameters(small=4096).run(program)
    assert operators(outcome.program)[-2:] == ["expand.default", "add.Tensor"]
    assert "mul.Tensor" not in operators(outcome.program)
    assert_same_function(program, outcome.program, 0.0)


def test_a_second_copy_of_a_tied_weight_is_declined_when_large() -> None:
    def tied(model: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.linear(x, model.w) @ model.w.t().contiguous().t()

    program = program_of(tied, w=torch.randn(400, 3))
    outcome = FoldParameters(small=1024).run(program)
    assert outcome.changed == ()
    assert "frees 0" in outcome.declined[0].reason


def test_chance_is_not_frozen() -> None:
    program = program_of(lambda m, x: x @ nn.functional.dropout(m.w, 0.5, training=True), w=torch.randn(3, 3))
    assert FoldParameters().run(program).changed == ()


@given(steps=st.lists(st.sampled_from(["t", "neg", "double", "flip", "split"]), min_size=1, max_size=4))
@settings(max_examples=8)
def test_any_chain_computes_the_same_bits(steps: list[str]) -> None:
    edits: dict[str, Callable[[Tensor], Tensor]] = {
        "t": lambda w: w.t(),
        "neg": lambda w: -w,
        "double": lambda w: w * 2,
        "flip": lambda w: w.flip(0),
        "split": lambda w: torch.cat(w.chunk(2)[::-1]),
    }

    def function(model: nn.Module, x: Tensor) -> Tensor:
        weight = model.w
        for step in steps:
            weight = edits[step](weight)
        return x @ weight

    case = Case("any", lambda: Apply(function, w=torch.randn(3, 3)), (2, 3))
    program = capture(case.model(), case.example())
    outcome = FoldParameters().run(program)
    assert operators(outcome.program) == ["matmul.default"]
    assert_same_function(program, outcome.program, 0.0)


@pytest.mark.parametrize("stage", [ChangeFloats("float16"), QuantizeWeights(4, unpack="load")])
def test_weights_that_are_stored_small_stay_so(stage) -> None:
    program = capture(Chain(a=nn.Linear(64, 64)).eval(), torch.randn(2, 64))
    small = stage.run(program).program
    outcome = FoldParameters().run(small)
    assert outcome.program is small
    assert "frees" in outcome.declined[0].reason


def test_a_chain_of_many_parameters_is_folded() -> None:
    """Longer than Python's stack is deep."""

    def chained(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        power = m.a
        for _ in range(600):
            power = power * m.b
        return x @ power

    program = capture(Apply(chained, a=torch.eye(4), b=torch.ones(4, 4)).eval(), torch.randn(2, 4))
    outcome = FoldParameters().run(program)
    assert outcome.changed
    x = torch.randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(outcome.program(x), program(x))

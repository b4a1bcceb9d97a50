"""Operators that return their input go; what only looks like one stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.remove_identities import RemoveIdentities
from tests.passes.models import Apply, Chain, assert_same_function, operators


def program_of(function: object, shape: tuple[int, ...] = (2, 3, 4)) -> Program:
    """A program of one function of its input; three channels, four elements each."""
    return capture(Apply(function).eval(), torch.randn(*shape))  # type: ignore[arg-type]


REMOVED = {
    "dropout": lambda m, x: nn.functional.dropout(x, 0.5, training=False).relu(),
    "alpha_dropout": lambda m, x: nn.functional.alpha_dropout(x, 0.5, training=False).relu(),
    "feature_dropout": lambda m, x: nn.functional.dropout1d(x, 0.5, training=False).relu(),
    "clone": lambda m, x: x.clone().relu(),
    "contiguous": lambda m, x: x.transpose(1, 2).contiguous().relu(),
    "detach": lambda m, x: x.detach().relu(),
    "to_same_dtype": lambda m, x: x.to(torch.float32).relu(),
    "float": lambda m, x: x.float().relu(),
    "view": lambda m, x: x.view(x.shape[0], 3, 4).relu(),
    "reshape": lambda m, x: x.reshape(x.shape).relu(),
    "flatten": lambda m, x: x.flatten(1).flatten(1).relu(),
    "permute": lambda m, x: x.permute(0, 1, 2).relu(),
    "transpose": lambda m, x: x.transpose(1, -2).relu(),
    "expand": lambda m, x: x.expand(-1, 3, 4).relu(),
    "squeeze": lambda m, x: x.squeeze(1).relu(),
    "slice": lambda m, x: x[:, 0:].relu(),
    "pad": lambda m, x: nn.functional.pad(x, (0, 0)).relu(),
}
LEFT = {"contiguous": ["transpose.int"], "flatten": ["flatten.using_ints"]}


@pytest.mark.parametrize("name", REMOVED)
def test_removes(name: str) -> None:
    program = program_of(REMOVED[name])
    before = str(program)
    outcome = RemoveIdentities().run(program)
    assert operators(outcome.program) == [*LEFT.get(name, []), "relu.default"]
    assert outcome.declined == ()
    well_formed(outcome.program)
    assert_same_function(program, outcome.program, 0.0)
    assert str(program) == before


def test_listing_before_and_after() -> None:
    program = capture(Chain(d=nn.Dropout(), l=nn.Linear(3, 4, bias=False)).eval(), torch.randn(2, 3))
    outcome = RemoveIdentities().run(program)
    assert str(program).splitlines()[4:7] == [
        "operators:",
        "  dropout: f32[batch, 3] = dropout(x, 0.5, False)  # d",
        "  linear: f32[batch, 4] = linear(dropout, l_weight)  # l",
    ]
    assert str(outcome.program).splitlines()[4:6] == [
        "operators:",
        "  linear: f32[batch, 4] = linear(x, l_weight)  # l",
    ]


KEPT = {
    "to_other_dtype": lambda m, x: x.to(torch.float64).relu(),
    "view_to_another_shape": lambda m, x: x.view(x.shape[0], 4, 3).relu(),
    "permute_of_equal_sizes": lambda m, x: x.reshape(-1, 2, 3, 2).permute(0, 3, 2, 1).relu(),
    "transpose_of_equal_sizes": lambda m, x: (x @ x.transpose(1, 2)).transpose(1, 2).relu(),
    "slice_of_a_part": lambda m, x: x[:, 1:].relu(),
    "slice_with_a_step": lambda m, x: x[:, ::2].relu(),
    "shift_by_padding": lambda m, x: nn.functional.pad(x, (1, -1)).relu(),
    "multiply_by_one": lambda m, x: (x * 1.0).relu(),
    "flip": lambda m, x: x.flip(1).relu(),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps_what_changes_values(name: str) -> None:
    """Export writes `x[:, 1:]` as two slices, of which the first takes everything: that one may go."""
    program = program_of(KEPT[name])
    outcome = RemoveIdentities().run(program)
    assert all(change.startswith("slice") for change in outcome.changed)
    assert len(operators(outcome.program)) >= 2
    assert_same_function(program, outcome.program, 0.0)


def test_a_copy_that_made_strides_fit_goes() -> None:
    """Multi-head attention makes its packed projection contiguous and then views it: a fault once."""
    program = program_of(lambda m, x: x.transpose(1, 2).contiguous().view(x.shape[0], 12).relu())
    outcome = RemoveIdentities().run(program)
    assert outcome.changed == ("contiguous is transpose",)
    well_formed(outcome.program)
    assert_same_function(program, outcome.program, 0.0)


def test_static_batch_does_not_make_a_symbolic_view_provable() -> None:
    """The view is the identity at batch 2 alone: with a dynamic batch it must stay."""
    program = program_of(lambda m, x: x.reshape(2, -1, 4)[:, :3].reshape(2, 3, 4).relu())
    outcome = RemoveIdentities().run(program)
    assert_same_function(program, outcome.program, 0.0)
    for batch in (2, 4):
        x = torch.randn(batch, 3, 4)
        if program.signature.dynamic.get("x"):
            assert torch.equal(program(x), outcome.program(x))


def test_training_dropout_is_declined_with_its_line() -> None:
    model = Chain(c=nn.Conv1d(3, 3, 1), d=nn.Dropout(0.5), r=nn.ReLU()).eval()
    program = capture(model, torch.randn(2, 3, 4))
    program.train()
    outcome = RemoveIdentities().run(program)
    assert outcome.program is program
    assert [decline.site for decline in outcome.declined] == ["dropout"]
    assert "training mode" in outcome.declined[0].reason
    assert outcome.declined[0].source is not None
    assert RemoveIdentities().run(program.eval()).changed == ("dropout is conv1d",)


def test_dropout_that_drops_nothing_goes_in_training_too() -> None:
    program = capture(Chain(d=nn.Dropout(0.0), r=nn.ReLU()).eval(), torch.randn(2, 3)).train()
    assert operators(RemoveIdentities().run(program).program) == ["relu.default"]


def test_an_output_stays_apart_from_an_input() -> None:
    program = program_of(lambda m, x: (x.clone(), x.relu()))
    outcome = RemoveIdentities().run(program)
    assert outcome.program is program
    assert "tensor of its own" in outcome.declined[0].reason


def test_two_outputs_stay_apart() -> None:
    def doubled(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.relu()
        return y, y.clone()

    outcome = RemoveIdentities().run(program_of(doubled))
    assert outcome.changed == ()
    assert [decline.site for decline in outcome.declined] == ["clone"]


def test_chains_go_at_once_and_sizes_with_them() -> None:
    program = program_of(
        lambda m, x: x.clone().view(x.shape[0], 3, 4).detach().reshape(x.shape[0], 3, -1).relu()
    )
    assert len(operators(program)) > 4
    outcome = RemoveIdentities().run(program)
    assert operators(outcome.program) == ["relu.default"]


@given(
    st.lists(st.sampled_from(sorted(set(REMOVED) | set(KEPT) - {"to_other_dtype"})), min_size=1, max_size=4)
)
@settings(max_examples=8)
def test_any_chain_computes_the_same_bits(names: list[str]) -> None:
    functions = [{**REMOVED, **KEPT}[name] for name in names]

    def chain(model: nn.Module, x: Tensor) -> Tensor:
        for function in functions:
            if x.dim() == 3 and x.shape[1] == 3 and x.shape[2] == 4:
                x = function(model, x)
        return x + 1

    program = program_of(chain)
    assert_same_function(program, RemoveIdentities().run(program).program, 0.0)

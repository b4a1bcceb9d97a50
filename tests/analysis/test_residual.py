"""Residual blocks are found by operators, the rest is declined with a reason; influence is what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.cost import cost
from fxcompress.analysis.depth_price import depth_price
from fxcompress.analysis.influence import influence
from fxcompress.analysis.residual import residual_blocks
from fxcompress.errors import InputError
from fxcompress.graph import edit
from tests.architectures.programs import captured
from tests.passes.models import Apply
from tests.passes.residual import Stack, convolutions, program_of, stack


def test_blocks_of_a_stack() -> None:
    blocks, declined = residual_blocks(stack())
    assert [(block.module, block.identity, len(block.nodes)) for block in blocks] == [
        ("a", 0, 3),
        ("b", 1, 3),
        ("c", 0, 3),
    ]
    assert declined == ()
    assert blocks[0].source is not None
    assert "return x + y" in blocks[0].source


def test_a_projection_on_the_shortcut_is_declined() -> None:
    blocks, declined = residual_blocks(convolutions())
    assert len(blocks) == 2
    assert len(declined) == 1
    assert "neither term is computed from the other" in declined[0].reason
    assert "conv2d" in declined[0].reason


DECLINED = {
    "alpha": (lambda m, x: torch.add(x.relu(), m.l(x.relu()), alpha=2), "alpha=2"),
    "itself": (lambda m, x: (lambda y: y + y)(m.l(x)), "one tensor"),
    "broadcast": (lambda m, x: (lambda y: y + m.l(y).mean(-1, keepdim=True))(m.l(x)), "broadcast"),
    "returned": (lambda m, x: x + m.l(x), "an output of the model"),
    "two_outputs": (lambda m, x: (lambda y: (y, y + m.l(y)))(m.l(x)), "an output of the model"),
    "parallel": (lambda m, x: (lambda y: (m.l(y) + m.k(y)).relu())(m.l(x)), "neither"),
    "needed_elsewhere": (
        lambda m, x: (lambda y, z: ((y + z).relu(), z.relu()))(*(lambda y: (y, m.l(y)))(m.k(x))),
        "needed elsewhere",
    ),
    "formula": (lambda m, x: (lambda y: (y + y.pow(3)).tanh())(m.l(x)), "a formula"),
    "size_only": (
        lambda m, x: (lambda y: (y + m.l(x.new_ones(y.shape[0], 4))).relu())(m.l(x)),
        "neither",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_no_block_is_declined(name: str) -> None:
    function, reason = DECLINED[name]
    program = program_of(Apply(function, l=nn.Linear(4, 4), k=nn.Linear(4, 4)), 3, 4)
    blocks, declined = residual_blocks(program)
    assert blocks == ()
    assert [item for item in declined if reason in item.reason], declined


FOUND: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "long_skip_over_a_short_one": lambda m, x: (lambda y: (y + m.k((lambda z: z + m.l(z))(m.l(y)))).relu())(
        m.l(x)
    ),
    "three_terms": lambda m, x: (lambda y: (y + (m.l(y) + m.k(y))).relu())(m.l(x)),
}


@pytest.mark.parametrize(("name", "count"), [("long_skip_over_a_short_one", 2), ("three_terms", 1)])
def test_nested_sums(name: str, count: int) -> None:
    program = program_of(Apply(FOUND[name], l=nn.Linear(4, 4), k=nn.Linear(4, 4)), 3, 4)
    assert len(residual_blocks(program)[0]) == count


@pytest.mark.parametrize(("name", "count"), [("hf_gpt2", 4), ("hf_bert", 4)])
def test_transformers_have_two_blocks_a_layer(name: str, count: int) -> None:
    assert len(residual_blocks(captured(name))[0]) == count


def test_influence_on_the_output_by_hand() -> None:
    program = stack()
    model = Stack().eval()
    model.load_state_dict(program.module.state_dict())
    batches = [torch.randn(3, 5), torch.randn(2, 5)]
    found = influence(program, residual_blocks(program)[0], batches)
    for block, name in zip(residual_blocks(program)[0], "abc", strict=True):
        without = copy.deepcopy(model)
        setattr(without, name, nn.Identity())
        with torch.no_grad():
            moved = sum(float((without(x) - model(x)).square().sum()) for x in batches)
            total = sum(float(model(x).square().sum()) for x in batches)
        assert found[block.name] == pytest.approx((moved / total) ** 0.5, rel=1e-5)


def test_influence_by_cosine_by_hand() -> None:
    program = stack()
    model = Stack().eval()
    model.load_state_dict(program.module.state_dict())
    batches = [torch.randn(3, 5), torch.randn(2, 5)]
    blocks = residual_blocks(program)[0]
    found = influence(program, blocks, batches, "cosine")
    with torch.no_grad():
        entered = model.stem(torch.cat(batches))
        cosines = nn.functional.cosine_similarity(entered, model.a(entered))
    assert found[blocks[0].name] == pytest.approx(1 - float(cosines.mean()), abs=1e-6)


def test_cosine_is_per_token() -> None:
    """One token of three turns round: a third of the tokens has cosine -1."""

    def turned(model: nn.Module, x: Tensor) -> Tensor:
        y = x.relu()
        return (y + model.m @ y).relu()

    gain = torch.diag(torch.tensor([0.0, 1.0, -2.0]))
    program = program_of(Apply(turned, m=gain.clone()), 2, 3, 4)
    edit.set_tensor(program, "m", gain)
    blocks = residual_blocks(program)[0]
    found = influence(program, blocks, [torch.rand(2, 3, 4) + 0.1], "cosine")
    assert found[blocks[0].name] == pytest.approx(2 / 3, abs=1e-6)


def test_influence_needs_data_and_a_measure() -> None:
    program = stack()
    blocks = residual_blocks(program)[0]
    with pytest.raises(InputError, match="no batch"):
        influence(program, blocks, [])
    with pytest.raises(InputError, match="no batch"):
        influence(program, blocks, [], "cosine")
    with pytest.raises(InputError, match="guess"):
        influence(program, blocks, [torch.randn(2, 5)], "guess")


@pytest.mark.parametrize("name", ["resnet_basic"])
def test_price_without_blocks_removed_is_the_cost(name: str) -> None:
    program = captured(name)
    price, whole = depth_price(program).without({}), cost(program)
    assert (price.params, price.bytes) == (whole.params, whole.bytes)
    assert price.macs == pytest.approx(whole.macs)

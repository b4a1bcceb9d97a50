"""What stays whole: patterns, types, predicates; heads against their width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import Analysis, analyse, rivals
from fxcompress.errors import InputError
from fxcompress.graph.archive import load, save
from fxcompress.graph.capture import capture
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.protection import protection
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.proof.masked import masked_equivalence
from tests.architectures.catalog import by_name


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Narrow(Block):
    """A block of another type."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(16), Narrow(12), Block(20))
        self.stem, self.head = nn.Conv1d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).mean(2)))


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(capture(Model().eval(), torch.randn(2, 3, 4)))


STREAM, FIRST, SECOND, THIRD = ("blocks.0.up.weight[1]", *(f"blocks.{i}.up.weight[0]" for i in range(3)))


def small(group: object) -> bool:
    return group.size < 16  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("protect", "names", "reason"),
    [
        (("blocks.0.*",), {STREAM, FIRST}, "protected by pattern 'blocks.0.*'"),
        (("blocks.*.up.*",), {STREAM, FIRST, SECOND, THIRD}, "protected by pattern 'blocks.*.up.*'"),
        (("blocks.1.up.bias",), {SECOND}, "protected by pattern 'blocks.1.up.bias'"),
        ((nn.Conv1d,), {STREAM}, "protected by type Conv1d"),
        ((nn.Linear,), {STREAM, FIRST, SECOND, THIRD}, "protected by type Linear"),
        ((Narrow,), {STREAM, SECOND}, "protected by type Narrow"),
        ((Block,), {STREAM, FIRST, SECOND, THIRD}, "protected by type Block"),
        (("blocks.0.down.weight[1]",), {FIRST}, "protected by name"),
        (("Conv1d",), {STREAM}, "protected by type 'Conv1d'"),
        (("torch.nn.modules.conv.*",), {STREAM}, "protected by type 'torch.nn.modules.conv.*'"),
        (("Narrow",), {STREAM, SECOND}, "protected by type 'Narrow'"),
        ((small,), {STREAM, SECOND}, "protected by small"),
        ((small, "blocks.0.up.bias"), {STREAM, FIRST, SECOND}, "protected by"),
        ((), set(), ""),
    ],
    # A set is written in another order in every process, a function with another address.
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_what_is_protected_and_why(
    analysis: Analysis, protect: tuple[object, ...], names: set[str], reason: str
) -> None:
    found = protection(analysis, Prune(protect=protect))
    assert set(found) == names
    assert all(text.startswith(reason) for text in found.values())


@pytest.mark.parametrize("item", [nn.LSTM, "Conv9d", "blocks.7.*", int])
def test_what_does_not_occur_is_refused(analysis: Analysis, item: object) -> None:
    with pytest.raises(InputError) as caught:
        protection(analysis, Prune(protect=(item,)))
    assert "Linear" in str(caught.value.hint)


def test_types_survive_the_archive(analysis: Analysis, tmp_path) -> None:
    save(analysis.program, tmp_path / "net.fxc")
    again = analyse(load(tmp_path / "net.fxc"))
    assert set(protection(again, Prune(protect=(nn.Conv1d, "Narrow")))) == {STREAM, SECOND}


@pytest.mark.parametrize(
    "name", ["vit_packed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hf_bert", "hf_llama"))]
)
def test_whole_heads_go_and_their_width_stays(name: str) -> None:
    """`factors="outer"` removes attention heads; what is left is proven. (TP#101, TP#287: heads by hand.)"""
    architecture = by_name(name)
    program = capture(
        architecture.model(), architecture.example(), dynamic_shapes=architecture.dynamic_shapes
    )
    analysis = analyse(program)
    factors = {
        group.name: place
        for product in rivals(analysis)
        for place, factor in enumerate(product)
        for group in factor
    }
    heads = {group for group, place in factors.items() if place == 0}
    widths = set(factors) - heads
    assert heads
    assert widths
    options = Prune(0.15, factors="outer", block=1, protect=(lambda group: group.name not in factors,))
    plan = plan_pruning(analysis, options, 1)
    assert set(plan.channels) <= heads
    assert plan.channels
    assert widths.isdisjoint(plan.channels)
    pruned = PruneChannels(plan).run(program).program
    assert masked_equivalence(program, pruned, plan).response > 0


@pytest.fixture(scope="module")
def attention() -> Analysis:
    architecture = by_name("vit_packed")
    return analyse(capture(architecture.model(), architecture.example()))


@pytest.mark.parametrize(
    ("factors", "outer", "inner"), [("outer", True, False), ("inner", False, True), ("both", True, True)]
)
def test_policies_of_heads_against_their_width(
    attention: Analysis, factors: str, outer: bool, inner: bool
) -> None:
    kept_whole = protection(attention, Prune(factors=factors))
    assert rivals(attention)
    for product in rivals(attention):
        assert all((group.name not in kept_whole) == outer for group in product[0])
        assert all((group.name not in kept_whole) == inner for group in product[-1])

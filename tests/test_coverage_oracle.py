"""The oracle of the coverage benchmark reads a removal from tensors alone, and sees what is wrong with it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.coverage_oracle import removed, told_apart, verdict
from fxcompress.analysis.groups import analyse
from fxcompress.graph.capture import capture
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import make_plan


class Attention(nn.Module):
    """Heads of width 4, however many there are: what forgets about heads still runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 16) for _ in range(3))
        self.out = nn.Linear(16, 5)
        self.first = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        batch, length = x.shape[:2]
        q, k, v = (part(x).view(batch, length, -1, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


@pytest.fixture
def model() -> nn.Module:
    return told_apart(Attention().eval())


INPUTS = (torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


def without(model: nn.Module, inner: list[int], width: list[int]) -> nn.Module:
    """The module with these inner and outer channels, sliced by hand."""
    thin = copy.deepcopy(model)
    slices = {"first": (width, None), "q": (inner, width), "k": (inner, width), "v": (inner, width)}
    for name, (rows, columns) in {**slices, "out": (None, inner)}.items():
        layer = thin.get_submodule(name)
        weight = layer.weight[rows] if rows is not None else layer.weight
        layer.weight = nn.Parameter(weight[:, columns] if columns is not None else weight)
        layer.bias = nn.Parameter(layer.bias[rows] if rows is not None else layer.bias)
    thin.norm = nn.LayerNorm(len(width)).double().eval()
    thin.norm.weight, thin.norm.bias = (
        nn.Parameter(tensor[width]) for tensor in (model.norm.weight, model.norm.bias)
    )
    return thin


def judged(model: nn.Module, thin: nn.Module) -> str:
    kept = removed(model, thin)
    assert not isinstance(kept, str)
    return verdict(capture(model, INPUTS), capture(thin, INPUTS), kept)[0]


HEADS = [0, 1, 2, 3, 8, 9, 10, 11]
WIDTH = [0, 2, 3, 5, 7]


def test_whole_heads_and_a_normalised_width_are_a_removal(model: nn.Module) -> None:
    assert judged(model, without(model, HEADS, WIDTH)) == "yes"


def test_a_part_of_every_head_is_none_where_heads_are_then_cut_anew(model: nn.Module) -> None:
    """TP#101: the head structure is not known, the module runs, and its heads are others."""
    assert judged(model, without(model, [place for place in range(16) if place % 4 != 3], WIDTH)) == "no"


def test_two_channels_in_each_others_place_are_seen(model: nn.Module) -> None:
    thin = without(model, HEADS, WIDTH)
    with torch.no_grad():
        thin.first.weight[[0, 1]] = thin.first.weight[[1, 0]]
    assert judged(model, thin) in ("no", "unclear")


def test_what_is_read_from_the_tensors_is_what_the_plan_said(model: nn.Module) -> None:
    program = capture(model, INPUTS)
    analysis = analyse(program)
    plan = make_plan(analysis, {group.name: tuple(range(1, group.size)) for group in analysis.groups[:2]})
    pruned = PruneChannels(plan).run(program).program
    kept = removed(model, pruned.module)
    assert kept == {name: dict(dims) for name, dims in plan.kept.items()}
    assert verdict(program, pruned, kept) == ("yes", "")


def test_other_numbers_are_no_slice(model: nn.Module) -> None:
    thin = without(model, HEADS, WIDTH)
    with torch.no_grad():
        thin.q.weight[0, 0] += 1
    assert removed(model, thin) == "q.weight is no slice of the original"

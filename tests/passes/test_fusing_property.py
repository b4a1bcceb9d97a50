"""The lossless stages keep the function of any network made of what they fuse, and of what they must not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.pipeline import Journal
from fxcompress.recipes import LOSSLESS
from tests.passes.fusing import program_of
from tests.passes.models import Case, assert_same_function
from tests.test_properties import WITHOUT_SHRINKING

SHAPE = (2, 4, 6, 5)
Function = Callable[["Step", Tensor], Tensor]


class Step(nn.Module):
    """One step of a random network: four channels in, four out, at the same size."""

    def __init__(self, kind: str, choice: int) -> None:
        super().__init__()
        groups, bias = (1, 2, 4)[choice % 3], choice % 2 == 0
        self.kind, self.choice = kind, choice
        self.conv = nn.Conv2d(4, 4, 3, padding=choice % 2, groups=groups, bias=bias)
        self.point = nn.Conv2d(4, 4, 1, groups=groups, bias=not bias)
        self.wide, self.narrow = nn.Conv2d(4, 9, 1, bias=bias), nn.Conv2d(9, 4, 3, padding=1)
        self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(4, 4, bias=bias)
        self.vector = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return STEPS[self.kind](self, x)


def convolution(m: Step, x: Tensor) -> Tensor:
    return m.conv(x) if m.choice % 2 else m.conv(F.pad(x, [1, 1, 1, 1]))


def affine(m: Step, x: Tensor) -> Tensor:
    vector = m.vector[:, None, None]
    kinds = (x * vector, x + vector, vector - x, x / 3, 2 - x, torch.sub(x, vector, alpha=2), -x)
    return kinds[m.choice % len(kinds)]


def row(m: Step, x: Tensor) -> Tensor:
    return m.narrow(m.wide(x)) if m.choice % 3 else m.point(m.point(x))


def branches(m: Step, x: Tensor) -> Tensor:
    three = m.conv(x if m.choice % 2 else F.pad(x, [1, 1, 1, 1]))
    other = (m.point(x), m.norm(x), x, m.point(x.relu()))[m.choice % 4]
    return three + other if m.choice % 3 else other + three + x


def turned(m: Step, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    y = (y.relu(), m.linear(y) * m.vector, y.softmax(-1), m.linear(y * m.vector))[m.choice % 4]
    return y.flatten(1, 2).unflatten(1, (6, 5)).permute(0, 3, 1, 2)


def twice(m: Step, x: Tensor) -> Tensor:
    return x.tanh() + x.tanh() * m.choice


STEPS: dict[str, Function] = {
    "convolution": convolution,
    "affine": affine,
    "norm": lambda m, x: m.norm(x),
    "row": row,
    "branches": branches,
    "turned": turned,
    "twice": twice,
    "shared": lambda m, x: m.point(x) * m.vector[:, None, None] + m.point(x.relu()),
    "rectified": lambda m, x: x.relu(),
    "averaged": lambda m, x: F.avg_pool2d(F.pad(x, [1, 1, 1, 1]), 3, 1),
}
FUSED: Counter[str] = Counter()
steps = st.lists(
    st.tuples(st.sampled_from(["affine", "convolution", *STEPS]), st.integers(0, 11)), min_size=2, max_size=7
)


def every_stage_is_exact(drawn: list[tuple[str, int]]) -> None:
    """Run the stages one by one; each that changes something keeps the function."""
    case = Case("random", lambda: nn.Sequential(*(Step(*one) for one in drawn)), SHAPE)
    program = program_of(case)
    for stage in LOSSLESS:
        outcome = Journal().outcome(stage, program)
        if outcome.changed:
            FUSED[stage.name] += 1
            assert_same_function(program, outcome.program, 1e-10)
        program = outcome.program


def tried(examples: int) -> None:
    settings(max_examples=examples, derandomize=True, phases=WITHOUT_SHRINKING)(
        given(steps)(every_stage_is_exact)
    )()


def test_every_stage_is_exact_on_random_networks() -> None:
    FUSED.clear()
    tried(10)
    assert {"fuse-batch-norm", "fuse-affine", "fuse-padding", "merge-branches", "merge-linears"} <= set(FUSED)
    assert {"cancel-layout", "remove-duplicates"} <= set(FUSED)


@pytest.mark.slow
def test_every_stage_is_exact_on_more_random_networks() -> None:
    tried(150)

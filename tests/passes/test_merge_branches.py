"""Branches that are added become one operator where that computes the same and costs no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress.passes.merge_branches import MergeBranches
from fxcompress.pipeline import Journal
from fxcompress.recipes import LOSSLESS
from tests.passes.fusing import assert_declines, assert_fuses, program_of, short
from tests.passes.models import Apply, Case, assert_same_function

IMAGE = (2, 4, 6, 5)
Function = Callable[[nn.Module, Tensor], object]


def sum_of_both(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x)


def case(name: str, a: nn.Module, b: nn.Module, function: Function = sum_of_both) -> Case:
    return Case(name, lambda: Apply(function, a=a, b=b), (2, 3, 4) if isinstance(a, nn.Linear) else IMAGE)


def conv(kernel: int | tuple[int, int], wide: int = 4, **options: object) -> nn.Conv2d:
    return nn.Conv2d(4, wide, kernel, **options)  # type: ignore[arg-type]


def residual(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.a(x)


def three(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) + x


MERGED = (
    (case("point", conv(3, padding=1), conv(1)), "conv2d"),
    (case("point_first", conv(1, 6, stride=2, bias=False), conv(3, 6, padding=1, stride=2)), "conv2d"),
    (case("grouped", conv(3, padding=1, groups=2), conv(1, groups=2, bias=False)), "conv2d"),
    (case("depthwise", conv(5, padding=2, groups=4), conv(3, padding=1, groups=4)), "conv2d"),
    (case("dilated", conv(3, padding=2, dilation=2), conv(1)), "conv2d"),
    (case("cross", conv((3, 1), padding=(1, 0)), conv((3, 3), padding=1)), "conv2d"),
    (case("one_size", conv(3, 6, padding=1), conv(3, 6, padding=1)), "conv2d"),
    (case("linear", nn.Linear(4, 6), nn.Linear(4, 6, bias=False)), "linear"),
    (case("identity", conv(3, padding=1, groups=2), nn.Identity(), residual), "conv2d"),
    (case("norm", conv(3, padding=1, groups=2), nn.BatchNorm2d(4)), "conv2d"),
    (case("three", conv(3, padding=1), conv(1), three), "conv2d"),
    (case("residual_linear", nn.Linear(4, 4), nn.Identity(), residual), "linear"),
)


@pytest.mark.parametrize(("found", "after"), MERGED, ids=lambda item: getattr(item, "name", ""))
def test_merges(found: Case, after: str) -> None:
    assert_fuses(MergeBranches(), found, after, 2 if found.name == "three" else 1)


def used_twice(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(y := x.relu()) + (z := m.b(y)) + z.exp()


DECLINED = (
    (
        case("steps", conv(3, padding=1), conv((1, 3), padding=(0, 1), dilation=1, stride=1, groups=2)),
        "groups",
    ),
    (case("thin", conv((3, 1), padding=(1, 0)), conv((1, 3), padding=(0, 1))), "one kernel takes"),
    (case("dilations", conv(3, padding=2, dilation=2), conv(3, padding=1)), "different dilations"),
    (case("used", conv(3, padding=1), conv(1), used_twice), "has other consumers"),
    (case("words", conv(3, padding="same"), conv(3, padding="same")), "pads by a word"),
    (
        case("subset", conv(1, bias=False), nn.Identity(), lambda m, x: torch.add(m.a(x), x, alpha=2)),
        "factor",
    ),
    (case("tied", conv(3, padding=1), conv(3, padding=1), lambda m, x: m.a(x) + m.a(x)), "shared"),
)


@pytest.mark.parametrize(("found", "reason"), DECLINED, ids=lambda item: getattr(item, "name", ""))
def test_declines(found: Case, reason: str) -> None:
    assert_declines(MergeBranches(), found, reason)


def test_branches_of_other_tensors_are_no_sites() -> None:
    found = case("other", conv(3, padding=1), conv(1), lambda m, x: m.a(x) + m.b(x * 2))
    outcome = MergeBranches().run(program_of(found))
    assert (outcome.changed, outcome.declined) == ((), ())


class RepVgg(nn.Module):
    """A training-time block: three branches, each with its own batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = self.norms[0](self.dense(x)) + self.norms[1](self.point(x)) + self.norms[2](x)
        return total.relu()


def test_a_block_of_repvgg_becomes_one_convolution() -> None:
    program = program_of(Case("repvgg", lambda: nn.Sequential(RepVgg(4), RepVgg(4)), IMAGE))
    merged = Journal().apply_all(LOSSLESS, program)
    assert short(merged) == ["conv2d", "relu", "conv2d", "relu"]
    assert_same_function(program, merged, 1e-11)


def test_a_transposed_branch_is_no_kernel_beside_a_plain_one() -> None:
    """`aten.convolution` is both, told apart by a flag."""

    def both(m: nn.Module, x: Tensor) -> Tensor:
        plain = torch.ops.aten.convolution.default(x, m.v, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        other = torch.ops.aten.convolution.default(x, m.w, None, [1, 1], [1, 1], [1, 1], True, [0, 0], 1)
        return plain + other

    found = Case(
        "flag", lambda: Apply(both, v=torch.randn(4, 4, 3, 3), w=torch.randn(4, 4, 3, 3)), (2, 4, 6, 6)
    )
    assert_declines(MergeBranches(), found, "transposed")

"""Forms that integer kernels exist for: shuffles selected, whole pools global, norms convolved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.passes.convolve_norms import ConvolveNorms
from fxcompress.passes.gather_shuffles import GatherShuffles
from fxcompress.passes.pool_globally import PoolGlobally
from tests.passes.fusing import assert_declines, assert_fuses
from tests.passes.models import Apply, Case, operators

SHAPE = (2, 6, 4, 5)


def case(name: str, function: Callable[[Tensor], object]) -> Case:
    return Case(name, lambda: Apply(lambda m, x: function(x)), SHAPE)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: shuffled(x * 2, 2),
        lambda x: shuffled(x * 2, 3),
        lambda x: (x * 2).unflatten(1, (3, 2)).permute(0, 2, 1, 3, 4).flatten(1, 2),
        lambda x: F.channel_shuffle(x * 2, 3),
    ],
)
def test_a_shuffle_becomes_a_selection(function: Callable[[Tensor], object]) -> None:
    assert_fuses(GatherShuffles(), case("shuffle", function), "mul index_select")


def test_shuffles_alike_share_their_order() -> None:
    outcome = assert_fuses(
        GatherShuffles(),
        case("two", lambda x: shuffled(shuffled(x, 2) * 2, 2)),
        "index_select mul index_select",
        changes=2,
    )
    assert sum(node.op == "get_attr" for node in outcome.program.graph.nodes) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(-1, 2, 3, 4, 5).transpose(1, 2).reshape(-1, 3, 2, 20),
        lambda x: x.view(-1, 2, 3, 4, 5).transpose(2, 3).reshape(-1, 6, 4, 5),
        lambda x: x.view(-1, 2, 3, 20).transpose(1, 2).reshape(-1, 6, 4, 5),
        lambda x: x.view(-1, 2, 3, 4, 5).reshape(-1, 6, 4, 5),
    ],
)
def test_what_is_no_shuffle_stays(function: Callable[[Tensor], object]) -> None:
    program = capture(Apply(lambda m, x: function(x)), torch.randn(SHAPE))
    assert GatherShuffles().run(program).program is program


def test_a_shuffle_that_is_read_inside_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        turned = x.view(-1, 2, 3, 4, 5).transpose(1, 2)
        return turned.reshape(-1, 6, 4, 5), turned * 2

    assert_declines(GatherShuffles(), case("inside", function), "is read elsewhere")


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d((4, 5)), nn.AvgPool2d(64, ceil_mode=True), nn.AvgPool2d((4, 9), ceil_mode=True)]
)
def test_a_window_over_everything_is_a_global_pool(pool: nn.Module) -> None:
    found = Case("pool", lambda: nn.Sequential(pool), SHAPE)
    assert_fuses(PoolGlobally(), found, "adaptive_avg_pool2d")


POOLS_KEPT = (
    (nn.AvgPool2d(4), "more than one window"),
    (nn.AvgPool2d(2), "more than one window"),
    (nn.AvgPool2d((8, 7), padding=(2, 1)), "pads"),
    (nn.AvgPool2d((4, 5), divisor_override=3), "of its own"),
)


@pytest.mark.parametrize(("pool", "reason"), POOLS_KEPT, ids=lambda item: str(item)[:20])
def test_other_pools_stay(pool: nn.Module, reason: str) -> None:
    assert_declines(PoolGlobally(), Case("pool", lambda: nn.Sequential(pool), SHAPE), reason)


def norm(**options: bool) -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(6, **options)
    generator = torch.Generator().manual_seed(0)
    for tensor in found.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return found


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_becomes_a_depthwise_convolution(affine: bool) -> None:
    model = nn.Sequential(norm(affine=affine), nn.ReLU()).eval()
    program = capture(model, torch.randn(SHAPE))
    outcome = ConvolveNorms().run(program)
    assert [name.partition(".")[0] for name in operators(outcome.program)] == ["conv2d", "relu"]
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(outcome.program(x), model(x), rtol=1e-6, atol=1e-6)
    again = ConvolveNorms().run(program)
    assert str(again.program) == str(outcome.program), "the program given must stay as it was"


def test_norms_without_statistics_or_images_stay() -> None:
    measured = nn.Sequential(norm(track_running_stats=False)).eval()
    flat = nn.Sequential(nn.BatchNorm1d(6)).eval()
    for model, shape, reason in ((measured, SHAPE, "training mode"), (flat, (2, 6), "no image")):
        outcome = ConvolveNorms().run(capture(model, torch.randn(shape)))
        assert not outcome.changed
        assert any(reason in decline.reason for decline in outcome.declined)

"""Explicit zeros around an image become the padding of what reads it, or stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.passes.fuse_padding import FusePadding
from tests.passes.fusing import assert_declines, assert_fuses
from tests.passes.models import Apply, Case

IMAGE = (2, 4, 6, 5)


def case(name: str, function: Callable[[nn.Module, Tensor], object], conv: nn.Module | None = None) -> Case:
    return Case(name, lambda: Apply(function, c=conv or nn.Conv2d(4, 4, 3, groups=2)), IMAGE)


def pool(**options: object) -> Callable[[nn.Module, Tensor], object]:
    return lambda m, x: F.avg_pool2d(F.pad(x, [1, 1, 1, 1]), 3, 2, **options)  # type: ignore[arg-type]


FUSED = (
    (case("conv", lambda m, x: m.c(F.pad(x, [1, 1, 2, 2]))), "conv2d"),
    (case("more", lambda m, x: m.c(F.pad(x, [1, 1])), nn.Conv2d(4, 4, 3, padding=1)), "conv2d"),
    (case("two_readers", lambda m, x: m.c(y := F.pad(x, [1, 1, 1, 1])) + F.avg_pool2d(y, 3, 1)), None),
    (case("pool", pool()), "avg_pool2d"),
    (case("pool_that_counts", pool(padding=0, count_include_pad=False)), "avg_pool2d"),
    (case("pool_of_its_own", lambda m, x: F.avg_pool2d(F.pad(x, [1, 1]), 4, 2, (1, 1))), "avg_pool2d"),
)


@pytest.mark.parametrize(("found", "after"), FUSED, ids=lambda item: getattr(item, "name", ""))
def test_is_taken_over(found: Case, after: str | None) -> None:
    assert_fuses(FusePadding(), found, after or "conv2d avg_pool2d add")


DECLINED = (
    (case("one_side", lambda m, x: m.c(F.pad(x, [0, 1, 0, 1]))), "one side more than the other"),
    (case("value", lambda m, x: m.c(F.pad(x, [1, 1, 1, 1], value=2.0))), "not zeros"),
    (case("reflected", lambda m, x: m.c(F.pad(x, [1, 1, 1, 1], mode="reflect"))), "pads by reflect"),
    (case("crop", lambda m, x: m.c(F.pad(x, [-1, -1]))), "crops"),
    (case("same", lambda m, x: m.c(F.pad(x, [1, 1])), nn.Conv2d(4, 4, 3, padding="same")), "by a word"),
    (
        case("channels", lambda m, x: m.c(F.pad(x, [0, 0, 0, 0, 1, 1])), nn.Conv2d(6, 4, 3)),
        "axes that are not spatial",
    ),
    (case("max_pool", lambda m, x: F.max_pool2d(F.pad(x, [1, 1, 1, 1]), 3)), "no padding of its own"),
    (case("one_of_two", lambda m, x: m.c(y := F.pad(x, [1, 1])).sum() + y.exp()), "no padding of its own"),
    (case("linear", lambda m, x: m.c(F.pad(x, [1, 1])), nn.Linear(7, 3)), "no padding of its own|spatial"),
    (case("transposed", lambda m, x: m.c(F.pad(x, [1, 1])), nn.ConvTranspose2d(4, 4, 3)), "no padding of"),
    (case("ceil", pool(ceil_mode=True)), "windows beyond its padding"),
    (case("uncounted", pool(padding=1, count_include_pad=False)), "does not count its own padding"),
    (case("half", lambda m, x: F.avg_pool2d(F.pad(x, [2, 2, 2, 2]), 3)), "at most half of its kernel"),
)


@pytest.mark.parametrize(("found", "reason"), DECLINED, ids=lambda item: getattr(item, "name", ""))
def test_declines(found: Case, reason: str) -> None:
    assert_declines(FusePadding(), found, reason.partition("|")[2] or reason)


def test_listing_after() -> None:
    outcome = assert_fuses(FusePadding(), FUSED[0][0], "conv2d")
    assert outcome.changed == ("pad into conv2d",)
    (line,) = [line for line in str(outcome.program).splitlines() if " = conv2d(" in line]
    assert line.partition("  #")[0] == (
        "  conv2d: f64[batch, 4, 8, 5] = conv2d(x, c_weight, c_bias, [1, 1], [2, 1], [1, 1], 2)"
    )

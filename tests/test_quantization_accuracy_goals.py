"""The accuracy benchmark says of every goal whether it was kept, and a lost one is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.quantization_accuracy_views import OURS, PER_TENSOR, POINTS, Row, goals, mean, of, upper_bound

RIGHT = (0,) * 1000
"""Nothing lost on a thousand images."""


def rows(subject: str = "net", **ours: object) -> list[Row]:
    """Five draws of ours and of one peer, which is worse by a little in everything."""
    mine = Row(subject, OURS, 0, 0.0, 1.0, 33.0, 1.0, RIGHT)
    theirs = Row(subject, "nncf", 0, 0.1, 1.2, 31.0, 1.0, RIGHT)
    mine = replace(mine, **ours)  # type: ignore[arg-type]
    return [replace(row, seed=seed) for row in (mine, theirs) for seed in range(5)]


def missed(found: list[Row]) -> list[str]:
    return [text for text, kept in goals(found, ("nncf",)) if not kept]


def test_a_table_that_keeps_everything() -> None:
    found = rows()
    assert missed(found) == []
    assert len(goals(found, ("nncf",))) == 3


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"lost": (1,) * 4 + (0,) * 996}, "our drop is at most 0.79 points"),
        ({"flipped": 1.3}, "flipped 1.30 %, nncf 1.20 %"),
        ({"decibels": 30.9}, "logits 30.9 dB, nncf 31.0 dB"),
    ],
)
def test_a_lost_goal_is_lost(ours: dict[str, object], said: str) -> None:
    (text,) = missed(rows(**ours))
    assert said in text


def test_the_bound_counts_images_and_draws() -> None:
    """Four of a thousand lost on every draw vary between images alone; on one of two draws, between both."""
    lost = (1,) * 4 + (0,) * 996
    same = [Row("net", OURS, seed, 0.4, 0.0, 0.0, 0.0, lost) for seed in range(2)]
    assert upper_bound(same) == pytest.approx(0.4 + 196 * (0.004 * 0.996 / 999) ** 0.5)
    apart = [same[0], replace(same[1], lost=RIGHT)]
    images = 2 * 0.002 * 0.5
    assert upper_bound(apart) > 0.2 + 196 * (images / 1000) ** 0.5 > POINTS / 2
    assert upper_bound(same[:1]) == pytest.approx(upper_bound(same))


def test_the_hostile_network_must_break_a_plain_quantizer() -> None:
    plain = [Row("spread", PER_TENSOR, seed, 72.0, 0.0, 0.0, 0.0, RIGHT) for seed in range(5)]
    assert missed([*rows("spread", drop=0.9), *plain]) == []
    (text,) = missed([*rows("spread", drop=1.1), *plain])
    assert "ours 1.10 (<= 1)" in text
    assert missed([*rows("spread"), *(replace(row, drop=9.0) for row in plain)]) != []
    assert mean(of(plain, "spread", PER_TENSOR), "drop") == 72.0

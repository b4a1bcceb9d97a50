"""The rule that picks what is handed out, on invented measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import onnx
import pytest

from fxcompress.api.candidates import BARE, CARRIED, SIZE_SLOWDOWN, Candidate, Check, Choice, Rules, choose
from fxcompress.errors import BudgetError
from fxcompress.graph.program import Program
from fxcompress.runtime.timing import Comparison

SIZES = {"original": 1000, "float": 600, "int8": 160, "int8, another form": 161, CARRIED: 170, BARE: 600}
LATENCY = Rules("latency", forced=False, max_drop=None)


def decide(
    times: dict[str, float],
    rules: Rules = LATENCY,
    metrics: dict[str, float] | None = None,
    check: Check | None = None,
) -> tuple[Choice, list[str]]:
    """The choice among candidates with these times in ms, and the candidates whose metric was asked for."""
    candidates = [
        Candidate(name, cast("Program", None), onnx.ModelProto(), b"x" * SIZES[name]) for name in times
    ]
    noise = [1 + 0.001 * (i % 5 - 2) for i in range(30)]
    measured = Comparison({name: tuple(t / 1e3 * n for n in noise) for name, t in times.items()}, {}, 1)
    asked: list[str] = []

    def metric(item: Candidate) -> float:
        asked.append(item.name)
        return cast("dict[str, float]", metrics)[item.name]

    return choose(candidates, measured, rules, None if metrics is None else metric, check), asked


@pytest.mark.parametrize(
    ("times", "winner", "reason"),
    [
        ({"original": 4, "float": 2, "int8": 1}, "int8", "the fastest"),
        ({"original": 4, "float": 1, "int8": 2}, "float", "the fastest"),
        ({"original": 4, "float": 1.0, "int8": 1.01}, "int8", "as fast as float, with a smaller file"),
        ({"original": 4, "float": 1.0, "int8": 1.03}, "float", "the fastest"),
        ({"original": 4, "float": 4.01}, "float", "the fastest"),
        ({"original": 4, "float": 5, "int8": 3}, "int8", "the fastest"),
        ({"original": 4, "float": 5, "int8": 6}, "original", "everything else is slower"),
        ({"original": 4, "float": 5}, "original", "everything else is slower"),
    ],
)
def test_the_fastest_wins_and_nothing_slower_is_handed_out(
    times: dict[str, float], winner: str, reason: str
) -> None:
    choice, _ = decide(times)
    assert choice.winner == winner
    assert reason in choice.reasons[winner]
    assert set(choice.reasons) == set(times)


def test_a_model_that_came_quantized_keeps_its_quantization() -> None:
    choice, _ = decide({"original": 4, CARRIED: 4, BARE: 2})
    assert choice.winner == CARRIED
    assert choice.reasons[BARE] == f"for comparison: 0.50 times the latency of {CARRIED}"


def test_every_loser_is_explained() -> None:
    choice, _ = decide({"original": 4, "float": 2, "int8": 1})
    assert choice.reasons == {
        "original": "for comparison",
        "float": "2.00 times the latency of int8",
        "int8": "the fastest",
    }


@pytest.mark.parametrize(
    ("int8", "winner"),
    [(0.5, "int8"), (4 * SIZE_SLOWDOWN * 0.98, "int8"), (4 * SIZE_SLOWDOWN * 1.05, "float")],
)
def test_size_keeps_the_smallest_file_up_to_the_stated_factor(int8: float, winner: str) -> None:
    choice, _ = decide({"original": 4, "float": 2, "int8": int8}, Rules("size", forced=False, max_drop=None))
    assert choice.winner == winner


def test_full_precision_is_a_demand() -> None:
    choice, _ = decide({"original": 4, "float": 2, "int8": 9}, Rules("latency", forced=True, max_drop=None))
    assert choice.winner == "int8"
    assert "full" in choice.reasons["int8"]


def test_a_candidate_that_loses_too_much_gives_way_to_the_next() -> None:
    rules = Rules("latency", forced=False, max_drop=0.02)
    metrics = {"original": 0.9, "float": 0.89, "int8": 0.5}
    choice, asked = decide({"original": 4, "float": 2, "int8": 1}, rules, metrics)
    assert choice.winner == "float"
    assert choice.reasons["int8"] == "loses 0.4 of the metric; max_drop is 0.02"
    assert choice.metrics == metrics
    assert asked == ["original", "int8", "float"]


def test_the_metric_is_measured_no_more_than_needed() -> None:
    metrics = {"original": 0.9, "float": 0.9, "int8": 0.1}
    choice, asked = decide({"original": 4, "float": 2, "int8": 1}, LATENCY, metrics)
    assert choice.winner == "int8", "without max_drop the metric is reported, not judged"
    assert asked == ["original", "int8"]


def test_nothing_is_handed_out_when_everything_loses_too_much() -> None:
    rules = Rules("latency", forced=False, max_drop=0.02)
    with pytest.raises(
        BudgetError, match=r"0\.9 before and may lose 0\.02; after: int8 0\.1, float 0\.2"
    ) as raised:
        decide({"original": 4, "float": 2, "int8": 1}, rules, {"original": 0.9, "float": 0.2, "int8": 0.1})
    assert raised.value.hint is not None


def test_the_output_that_moves_most_is_named_where_there_are_several() -> None:
    rules = Rules("latency", False, 0.02, {"int8": 0.5}, moved={"int8": "scores"})
    choice, _ = decide({"original": 4, "float": 2, "int8": 1}, rules)
    assert choice.winner == "float"
    assert choice.reasons["int8"] == "loses 0.5 of the norm of its output 'scores'; max_drop is 0.02"


@pytest.mark.parametrize(("original", "drop"), [(0.0, 8.9e-8), (-300.0, 2e-4)])
def test_rounding_of_the_float_model_is_no_loss(original: float, drop: float) -> None:
    """Once `max_drop=0.0` was refused wherever the metric is continuous."""
    rules = Rules("latency", forced=False, max_drop=0.0)
    times: dict[str, float] = {"original": 4, "float": 2, "int8": 1}
    metrics = {name: original - loss for name, loss in (("original", 0.0), ("float", drop), ("int8", drop))}
    choice, _ = decide(times, rules, metrics)
    assert choice.winner == "float", "what is quantized loses by more than rounding"
    with pytest.raises(BudgetError):
        decide(times, replace(rules, lossless=False), metrics)
    with pytest.raises(BudgetError):
        decide(times, rules, {**metrics, "float": original - 10 * drop - 1e-5})


def test_a_gain_is_no_loss() -> None:
    rules = Rules("latency", forced=False, max_drop=0.0)
    metrics: dict[str, Any] = {"original": 0.9, "float": 0.95, "int8": 0.91}
    assert decide({"original": 4, "float": 2, "int8": 1}, rules, metrics)[0].winner == "int8"


def test_a_variant_whose_proof_fails_makes_room_for_the_next_best() -> None:
    asked: list[str] = []

    def check(item: Candidate) -> str | None:
        asked.append(item.name)
        return "its proof failed: off by three" if item.name == "int8" else None

    choice, _ = decide({"original": 4, "float": 2, "int8": 1}, check=check)
    assert asked == ["int8", "float"], "only those that would be handed out are proven"
    assert choice.winner == "float"
    assert choice.reasons["int8"] == "its proof failed: off by three"


def test_where_no_proof_holds_the_original_is_handed_out() -> None:
    choice, _ = decide({"original": 4, "int8": 1}, check=lambda _: "its proof failed: off by three")
    assert choice.winner == "original"
    assert "its proof failed" in choice.reasons["original"]


def test_a_failed_proof_is_no_loss_of_the_metric() -> None:
    rules = Rules("latency", forced=False, max_drop=0.5)
    metrics = {"original": 1.0, "int8": 0.9}
    choice, _ = decide({"original": 4, "int8": 1}, rules, metrics, lambda _: "its proof failed")
    assert choice.winner == "original"


def test_files_of_nearly_one_size_are_told_apart_by_their_times() -> None:
    """Once 393 bytes of three millions were worth a quarter of the latency."""
    times = {"original": 4.0, "float": 2.0, "int8": 4.8, "int8, another form": 3.0}
    assert decide(times, Rules("size", forced=False, max_drop=None))[0].winner == "int8, another form"

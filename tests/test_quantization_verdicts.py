"""The quantization benchmark calls a lost row lost, whichever way it is lost."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quantization_page import gain_over, page, verdicts


def time(
    ours: float, static: float, *, slower: tuple[str, ...] = (), nncf: float | None = 9.0
) -> dict[str, Any]:
    """What a timing process says; `slower`: than whom ours is, beyond doubt."""
    ms = {"float": 10.0, "ours": ours, "quantize_static": static}
    if nncf is not None:
        ms["nncf"] = nncf
    ratios = {label: [ours / value, ours / value, ours / value] for label, value in ms.items()}
    return {"ms": ms, "ratios": ratios, "slower": {label: label in slower for label in ms}}


def rows(*times: dict[str, Any], model: str = "net") -> dict[str, Any]:
    row = {"model": model, "threads": 1, "clock": "wall", "made": {"winner": "int8"}, "times": list(times)}
    return {f"{model}, 1": row}


def failed(found: dict[str, Any]) -> list[str]:
    return [text for text, kept in verdicts(found, 1) if not kept]


GOOD = time(2.0, 4.0)


def test_a_table_that_keeps_everything() -> None:
    found = rows(GOOD, time(2.0, 8.0))
    assert failed(found) == []
    assert gain_over(found["net, 1"], "quantize_static") == pytest.approx(8.0**0.5)
    assert "| net | 10.00 | 2.00 | 4.00 | 9.00 | 5.00x | 2.83x | int8 | - |" in page(found)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([{"failed": "not finished"}] * 2, "loads on 0 of 1 models (not on net)"),
        ([GOOD, {"failed": "died"}], "loads on 0 of 1"),
        ([time(11.0, 20.0, slower=("float",))] * 2, "never slower than float (not on net)"),
        ([time(5.0, 4.0, slower=("quantize_static",))] * 2, "best of the others (not on net)"),
        ([time(5.0, 9.0, slower=("nncf",), nncf=4.0)] * 2, "best of the others (not on net)"),
        ([time(3.6, 4.0)] * 2, "geometric mean over quantize_static on 1 models: 1.111x"),
    ],
)
def test_each_way_to_lose(times: list[dict[str, Any]], said: str) -> None:
    assert any(said in text for text in failed(rows(*times)))


def test_slower_in_one_process_alone_is_not_slower() -> None:
    found = rows(GOOD, time(2.0, 4.0, slower=("float", "quantize_static")))
    assert failed(found) == []


def test_a_peer_that_does_not_load_is_no_opponent() -> None:
    found = rows(time(2.0, 4.0, nncf=None), time(2.0, 4.0, nncf=None))
    assert failed(found) == []
    assert "| 4.00 | - |" in page(found)


def test_the_best_of_the_others_counts_not_the_worst() -> None:
    found = rows(*[time(5.0, 9.0, slower=("quantize_static",), nncf=6.0)] * 2)
    assert failed(found) == [], "slower than the one that is not the fastest cannot be"

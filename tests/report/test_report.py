"""The report survives JSON, and says the same to a machine as to a person."""

from __future__ import annotations

import json

import pytest

from fxcompress.report.report import (
    Candidate,
    DeclinedSite,
    FrozenEntry,
    Interval,
    Operators,
    OutputError,
    PassEntry,
    Proof,
    Report,
    Side,
)

FULL = Report(
    before=Side(params=1000, macs=2000, bytes=4000, latency_ms=2.0, metric=0.9),
    after=Side(params=400, macs=1000, bytes=500, latency_ms=1.0, metric=0.8, peak_memory=7),
    output_error=OutputError(max=0.5, mean=0.1),
    latency_ratio=Interval(0.5, 0.45, 0.55),
    passes=(PassEntry("fuse", 0.1, ("bn1 into conv1",), (DeclinedSite("bn2", "shared weight", "m.py:3"),)),),
    frozen=(FrozenEntry("x dim 1", 3, "input", "m.py:1", "placeholder"),),
    notes=("static batch",),
    candidates=(
        Candidate("float", 2.0, 4000),
        Candidate("int8", 1.0, 500, error=0.0325, chosen=True, reason="fastest"),
    ),
    proofs=(Proof("masked equivalence", 1e-13, 1e-9, "2 inputs"),),
    operators=Operators(10, 9, ("resize",)),
    settings={"prune": 0.5, "threads": 1},
    seconds=1.5,
)


def test_round_trip_through_json_is_exact() -> None:
    assert Report.from_dict(json.loads(json.dumps(FULL.to_dict()))) == FULL


def test_round_trip_of_a_minimal_report() -> None:
    report = Report(before=Side(), after=Side())
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_dict_has_the_promised_fields() -> None:
    data = FULL.to_dict()
    for side in ("before", "after"):
        assert {"params", "macs", "bytes", "latency_ms", "metric"} <= data[side].keys()
    assert {"output_error", "passes", "frozen", "notes"} <= data.keys()
    assert {"name", "seconds", "changed", "declined"} <= data["passes"][0].keys()
    assert data["passes"][0]["declined"][0]["reason"] == "shared weight"
    assert {"axis", "size", "reason", "source"} <= data["frozen"][0].keys()


def test_ratios_are_after_over_before_and_absent_where_unmeasured() -> None:
    assert FULL.ratio("macs") == 0.5
    assert FULL.to_dict()["ratios"]["bytes"] == 0.125
    assert FULL.ratio("peak_memory") is None
    assert FULL.ratio("throughput") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_without_a_json_word_become_null(value: float) -> None:
    data = Report(before=Side(metric=value), after=Side()).to_dict()
    assert data["before"]["metric"] is None
    json.dumps(data, allow_nan=False)

from __future__ import annotations

import gc

import numpy as np
import pytest

from fxcompress.errors import InputError
from fxcompress.runtime import timing
from fxcompress.runtime.session import SessionError
from fxcompress.runtime.timing import Comparison, Engine, compare
from tests.runtime.models import matmuls, scale

FEEDS = {"x": np.ones((128, 128), np.float32)}


def rounds_of(**seconds: list[float]) -> Comparison:
    return Comparison(
        {label: tuple(values) for label, values in seconds.items()}, dict.fromkeys(seconds, 1), 1
    )


def test_a_model_with_many_times_the_work_is_slower() -> None:
    found = compare({"one": matmuls(1), "eight": matmuls(8)}, FEEDS, rounds=8)
    assert found.rounds == 8
    assert found.ratio("eight", "one").value > 3
    assert found.slower("eight", "one")
    assert not found.slower("one", "eight")
    assert found.median_ms["eight"] > found.median_ms["one"] > 0


def test_a_model_is_not_slower_than_itself() -> None:
    found = compare({"a": matmuls(2), "b": matmuls(2)}, FEEDS, rounds=30)
    ratio = found.ratio("a", "b")
    assert ratio.low < 1.1
    assert ratio.high > 0.9


def test_thirty_rounds_unless_fewer_are_stated() -> None:
    assert compare({"a": scale()}, {"x": np.ones((1, 4), np.float32)}, seconds=0.05).rounds == 30


def test_short_calls_are_repeated_within_a_round_and_a_bound_on_time_lowers_that() -> None:
    feeds = {"x": np.ones((1, 4), np.float32)}
    free = compare({"a": scale()}, feeds, rounds=2)
    bounded = compare({"a": scale()}, feeds, rounds=2, seconds=0.001)
    assert free.repetitions["a"] > 5 * bounded.repetitions["a"] > 0


def test_repetitions_fill_a_round_and_respect_the_bound() -> None:
    assert timing._repetitions({"a": 0.001, "b": 1.0}, 30, None) == {"a": 5, "b": 1}
    assert timing._repetitions({"a": 0.001}, 30, 0.06) == {"a": 2}
    assert timing._repetitions({"a": 0.001}, 30, 1e-9) == {"a": 1}


def test_the_order_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = {name: object() for name in "abc"}
    order: list[str] = []
    engine = timing.Engine("stub", lambda model, threads: sessions[model])
    monkeypatch.setattr(timing, "_warm", lambda session, feeds: 1.0)

    def record(session: object, feeds: object, calls: int, clock: object) -> float:
        order.append(next(name for name, one in sessions.items() if one is session))
        assert not gc.isenabled()
        return 1.0

    monkeypatch.setattr(timing, "_time", record)
    measured = compare({name: name for name in "abc"}, {}, rounds=4, engine=engine)
    assert measured.runtime == "stub"
    assert "".join(order) == "abcbcacababc"
    assert gc.isenabled()


def test_slower_means_that_the_interval_lies_above_two_percent() -> None:
    base = [1.0] * 30
    assert not rounds_of(a=[1.019] * 30, b=base).slower("a", "b")
    assert rounds_of(a=[1.03] * 30, b=base).slower("a", "b")
    noisy = [1.5, 0.9] * 15
    assert rounds_of(a=noisy, b=base).ratio("a", "b").value > 1.02
    assert not rounds_of(a=noisy, b=base).slower("a", "b")


def test_throughput_is_samples_per_second() -> None:
    assert rounds_of(a=[0.5, 0.5, 9.0]).throughput("a", 4) == 8.0


def test_bad_requests_are_typed_errors() -> None:
    with pytest.raises(InputError, match="at least one"):
        compare({}, FEEDS)
    with pytest.raises(InputError, match="at least one"):
        compare({"a": scale()}, FEEDS, rounds=0)
    with pytest.raises(SessionError, match="shape"):
        compare({"a": scale()}, FEEDS)
    with pytest.raises(SessionError):
        compare({"a": scale(), "broken": scale()[:30]}, {"x": np.ones((1, 4), np.float32)})


def test_rounds_are_spread_over_sessions_that_are_opened_anew() -> None:
    opened: list[str] = []

    class Counted:
        def run(self, output_names: None, feeds: object) -> None:
            del output_names, feeds

    def opener(model: str, *, threads: int) -> Counted:
        opened.append(model)
        return Counted()

    engine = Engine("made up", opener)
    found = compare({"a": "a", "b": "b"}, {}, rounds=11, sessions=3, engine=engine)  # type: ignore[dict-item]
    assert opened == ["a", "b"] * 3
    assert {label: len(values) for label, values in found.seconds.items()} == {"a": 11, "b": 11}
    with pytest.raises(InputError, match="a round for each session"):
        compare({"a": "a"}, {}, rounds=2, sessions=3, engine=engine)  # type: ignore[dict-item]

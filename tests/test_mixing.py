"""Which cuts become candidates, and that the winner among them is what a user gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.analysis.precision_prices import Crossing, PrecisionPrices, Vertex
from fxcompress.analysis.sensitivity import LayerError
from fxcompress.api import choosing, flow, mixing
from fxcompress.api.frontier import GIVEN_UP
from fxcompress.api.mixing import MOST, _chosen
from fxcompress.errors import ProofError
from fxcompress.graph.program import Program
from fxcompress.measure import Difference
from fxcompress.plan.quantization_plan import Quantize
from fxcompress.report.report import Report
from fxcompress.runtime.timing import Comparison
from tests.passes.models import Chain

CALIBRATION = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def chain(times: list[tuple[float, float, float]], conversion: float) -> PrecisionPrices:
    """Operators one after the other: ms in float, ms in int8, error."""
    names = [f"v{place}" for place in range(len(times))]
    vertices = tuple(
        Vertex(name, (name,), a, b, error) for name, (a, b, error) in zip(names, times, strict=True)
    )
    makers = [None, *names]
    readers = [*names, ""]
    crossings = tuple(
        Crossing(f"t{place}", maker, (reader,), conversion, conversion)
        for place, (maker, reader) in enumerate(zip(makers, readers, strict=True))
    )
    return PrecisionPrices(vertices, crossings)


def test_where_int8_is_best_everywhere_no_mixture_is_tried() -> None:
    found = _chosen(chain([(4.0, 1.0, 0.1)] * 5, 0.1), ())
    assert found.found == ()
    assert found.full.ms == pytest.approx(5.2)
    assert found.floats.ms == pytest.approx(20.0)


def test_what_is_slower_in_int8_is_left_out_of_the_cut() -> None:
    found = _chosen(chain([(1.0, 3.0, 0.1), (4.0, 1.0, 0.1), (4.0, 1.0, 0.1)], 0.1), ())
    assert [mix.name for mix in found.found] == ["int8 cut"]
    assert found.found[0].operators == {"v1", "v2"}


def test_dearer_conversions_and_errors_make_other_cuts() -> None:
    prices = chain([(2.0, 0.9, 0.1), (1.0, 5.0, 0.1), (9.0, 4.0, 0.2), (1.02, 0.98, 5.0)], 0.4)
    found = _chosen(prices, ())
    names = [mix.name for mix in found.found]
    assert names == ["int8 cut", "int8 cut, fewer conversions", "int8 cut, finer"]
    assert [set(mix.operators) for mix in found.found] == [{"v0", "v2", "v3"}, {"v2", "v3"}, {"v2"}]
    assert len(found.found) <= MOST


def test_the_fastest_cut_is_tried_however_little_it_promises() -> None:
    found = _chosen(chain([(1.0, 1.9, 0.0), (40.0, 10.0, 0.0)], 0.01), ())
    assert found.found[0].mixture.ms > 0.9 * found.full.ms
    assert [set(mix.operators) for mix in found.found] == [{"v1"}]


def test_equal_cuts_are_tried_once() -> None:
    found = _chosen(chain([(1.0, 30.0, 0.1), (40.0, 1.0, 0.0)], 0.01), ())
    assert [mix.name for mix in found.found] == ["int8 cut"]


def net() -> nn.Module:
    torch.manual_seed(0)
    return Chain(c=nn.Conv2d(3, 8, 3), r=nn.ReLU(), d=nn.Conv2d(8, 8, 3), e=nn.Conv2d(8, 2, 3)).eval()


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolution is slower in int8; candidates are timed by how much is in int8."""

    def invented(*_: object) -> PrecisionPrices:
        slow = Vertex("conv2d", ("conv2d", "relu"), 1.0, 9.0, 0.1)
        fast = [Vertex(name, (name,), 4.0, 1.0, 0.1) for name in ("conv2d_1", "conv2d_2")]
        return PrecisionPrices((slow, *fast), (Crossing("relu", "conv2d", ("conv2d_1",), 0.1, 0.1),))

    times = {"original": 4.0, "float": 4.0, "int8": 3.0, "int8 cut": 2.0}

    def timed(request: object, original: object, candidates: Any) -> Comparison:
        return Comparison({item.name: (times[item.name],) * 30 for item in candidates}, {}, 1)

    monkeypatch.setattr(mixing, "precision_prices", invented)
    monkeypatch.setattr(flow, "time_all", timed)


@pytest.mark.usefixtures("priced")
def test_the_fastest_mixture_is_handed_out_with_its_plan() -> None:
    result = fxcompress.optimize(net(), CALIBRATION[0][:2], quantize="int8", calibration=CALIBRATION)
    candidates = {entry.name: entry for entry in result.report.candidates}
    assert list(candidates) == ["original", "float", "int8", "int8 cut"]
    assert [name for name, entry in candidates.items() if entry.chosen] == ["int8 cut"]
    assert candidates["int8"].reason == "1.50 times the latency of int8 cut"
    assert result.plan.precision == {
        "conv2d": "float",
        "conv2d_1": "int8",
        "conv2d_2": "int8",
        "relu": "float",
    }
    assert result.plan.to_dict()["precision"] == result.plan.precision
    assert [proof.name for proof in result.report.proofs] == ["float-parity", "integer-bound"]
    shown = {node.op_type for node in result.onnx.graph.node}
    assert {"QuantizeLinear", "Conv"} <= shown


SHARES = {"conv2d": 0.5, "conv2d_1": 0.3, "conv2d_2": 0.3}
"""What each convolution in int8 adds to the error."""


def in_integers(program: Program) -> set[str]:
    """The convolutions whose weights are integers."""
    return {
        node.name
        for node in program.graph.nodes
        if node.name in SHARES and "dequantize" in str(node.all_input_nodes[1].target)
    }


@pytest.fixture
def traded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution that hurts most in int8 is the one that int8 speeds up most."""
    ms = {"conv2d": (9.0, 1.0), "conv2d_1": (2.0, 1.0), "conv2d_2": (2.0, 1.0)}

    def invented(*_: object) -> PrecisionPrices:
        operators = {name: (name,) for name in ms} | {"conv2d": ("conv2d", "relu")}
        vertices = [Vertex(name, operators[name], *both, SHARES[name]) for name, both in ms.items()]
        return PrecisionPrices(tuple(vertices), ())

    def timed(request: object, original: object, candidates: Any) -> Comparison:
        found = {
            item.name: sum(both[name in in_integers(item.program)] for name, both in ms.items())
            for item in candidates
        }
        return Comparison({name: (seconds,) * 30 for name, seconds in found.items()}, {}, 1)

    def compared(request: object, made: object, candidates: Any) -> dict[str, Difference]:
        lost = {item.name: sum(SHARES[name] for name in in_integers(item.program)) for item in candidates}
        return {name: Difference(error, error, error) for name, error in lost.items()}

    def ranked(*_: object) -> list[LayerError]:
        return [LayerError(name, name, 30.0, 30.0, share) for name, share in SHARES.items()]

    monkeypatch.setattr(mixing, "precision_prices", invented)
    monkeypatch.setattr(flow, "time_all", timed)
    monkeypatch.setattr(flow, "compare_outputs", compared)
    monkeypatch.setattr(choosing, "compare_outputs", compared)
    monkeypatch.setattr(choosing, "ranked_layers", ranked)


@pytest.mark.usefixtures("traded")
def test_of_two_choices_within_max_drop_the_faster_is_handed_out() -> None:
    """By sensitivity alone the first convolution would stay in float (11 ms); the cut's frontier knows that
    leaving the two others there is faster (5 ms).
    """
    result = fxcompress.optimize(
        net(), CALIBRATION[0][:2], quantize="int8", calibration=CALIBRATION, max_drop=0.7
    )
    candidates = {entry.name: entry for entry in result.report.candidates}
    assert list(candidates) == ["original", "float", "int8", "int8 cut, 2 of 4 operators"]
    latencies = {name: entry.latency_ms for name, entry in candidates.items()}
    assert latencies["int8 cut, 2 of 4 operators"] == pytest.approx(5e3)
    assert [name for name, entry in candidates.items() if entry.chosen] == ["int8 cut, 2 of 4 operators"]
    assert candidates["int8"].reason == "loses 1.1 of its outputs' norm; max_drop is 0.7"
    assert result.plan.precision == {
        "conv2d": "int8",
        "conv2d_1": "float",
        "conv2d_2": "float",
        "relu": "int8",
    }
    assert result.plan.quantization is not None
    given_up = {item.node for item in result.plan.quantization.declined if item.reason == GIVEN_UP}
    assert given_up == {"conv2d_1", "conv2d_2"}
    assert any("2 operators stay in float that would be faster" in note for note in result.report.notes)


@pytest.mark.usefixtures("traded")
def test_the_report_shows_the_frontier_and_which_points_were_timed() -> None:
    result = fxcompress.optimize(
        net(), CALIBRATION[0][:2], quantize="int8", calibration=CALIBRATION, max_drop=0.7
    )
    shown = [(point.operators, point.latency_ms, point.candidate) for point in result.report.frontier]
    assert shown == [(4, 3.0, "int8"), (2, 5.0, "int8 cut, 2 of 4 operators"), (0, 13.0, "float")]
    errors = [point.error for point in result.report.frontier]
    assert errors == sorted(errors, reverse=True)
    assert Report.from_dict(result.report.to_dict()).frontier == result.report.frontier


@pytest.mark.usefixtures("traded")
def test_for_size_the_layers_that_hurt_are_walked() -> None:
    """Few layers in float are a small file, whatever they take."""
    options = {"quantize": "int8", "calibration": CALIBRATION, "max_drop": 0.7}
    result = fxcompress.optimize(net(), CALIBRATION[0][:2], objective="size", **options)
    assert [entry.name for entry in result.report.candidates][2:] == ["int8", "int8, 1 layers in float"]
    assert next(entry.name for entry in result.report.candidates if entry.chosen) == "int8, 1 layers in float"


@pytest.mark.usefixtures("traded")
def test_a_layer_that_breaks_the_outputs_counts_more_than_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [LayerError("conv2d", "", 30.0, 30.0, 0.5), LayerError("conv2d_1", "", 0.0, 0.0, float("inf"))]
    monkeypatch.setattr(choosing, "ranked_layers", lambda *_: rows)
    result = fxcompress.optimize(
        net(), CALIBRATION[0][:2], quantize="int8", calibration=CALIBRATION, max_drop=0.7
    )
    assert result.report.frontier[0].error > 1.0
    assert result.report.frontier[1].error < 1.0, "it is the first that is given up"


@pytest.mark.usefixtures("traded")
def test_where_the_fastest_keeps_the_bound_nothing_is_given_up() -> None:
    result = fxcompress.optimize(
        net(), CALIBRATION[0][:2], quantize="int8", calibration=CALIBRATION, max_drop=1.2
    )
    assert [entry.name for entry in result.report.candidates] == ["original", "float", "int8"]
    assert next(entry.name for entry in result.report.candidates if entry.chosen) == "int8"


@pytest.mark.usefixtures("priced")
def test_full_precision_tries_no_mixture_and_returns_int8() -> None:
    options = Quantize(precision="full")
    result = fxcompress.optimize(net(), CALIBRATION[0][:2], quantize=options, calibration=CALIBRATION)
    assert [entry.name for entry in result.report.candidates] == ["original", "float", "int8"]
    assert set(result.plan.precision.values()) == {"int8"}


@pytest.mark.usefixtures("priced")
def test_a_winner_that_cannot_be_proven_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    real = choosing.prove_variant

    def doubtful(made: Any, item: Any, *rest: Any) -> Any:
        if item.name == "int8 cut":
            raise ProofError("off by three steps")
        return real(made, item, *rest)

    monkeypatch.setattr(choosing, "prove_variant", doubtful)
    result = fxcompress.optimize(net(), CALIBRATION[0][:2], quantize="int8", calibration=CALIBRATION)
    candidates = {entry.name: entry for entry in result.report.candidates}
    assert candidates["int8"].chosen
    assert candidates["int8 cut"].reason == "its proof failed: off by three steps"

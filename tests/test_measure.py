"""One face for programs and sessions, honest differences, metrics that must be numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower
from fxcompress.measure import (
    Difference,
    as_model,
    differences,
    evaluate_model,
    program_runner,
    resized,
    session_runner,
)


class Named(nn.Module):
    """Two inputs by keyword, named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.l(x) * scale, "count": (x > 0).sum(1)}


@pytest.fixture(scope="module")
def named() -> Program:
    return capture(Named().eval(), {"x": torch.randn(2, 3), "scale": torch.randn(2, 1)})


@pytest.fixture(scope="module")
def faces(named: Program) -> dict[str, Callable[..., Any]]:
    model = lower(named)
    return {
        "program": as_model(named, program_runner(named)),
        "session": as_model(named, session_runner(model.SerializeToString())),
    }


@pytest.mark.parametrize("face", ["program", "session"])
@pytest.mark.parametrize("batch", [1, 5])
def test_takes_and_returns_what_the_model_does(
    faces: dict[str, Callable[..., Any]], named: Program, face: str, batch: int
) -> None:
    x, scale = torch.randn(batch, 3), torch.randn(batch, 1)
    expected = named.module(x=x, scale=scale)
    found = faces[face](x=x, scale=scale)
    assert list(found) == ["logits", "count"]
    torch.testing.assert_close(found["logits"], expected["logits"].detach())
    assert torch.equal(found.count, expected["count"])
    torch.testing.assert_close(found.logits, found["logits"])
    with pytest.raises(AttributeError, match="no output 'missing'"):
        _ = found.missing


@pytest.mark.parametrize("face", ["program", "session"])
def test_wrong_arguments_are_typed_errors_on_both_faces(
    faces: dict[str, Callable[..., Any]], face: str
) -> None:
    with pytest.raises(InputError, match="shape"):
        faces[face](x=torch.randn(2, 7), scale=torch.randn(2, 1))


def test_a_static_batch_is_called_in_pieces() -> None:
    model = nn.Linear(3, 4).eval()
    exported = torch.export.export(model, (torch.randn(4, 3),))
    program = capture(exported)
    assert not any(program.signature.dynamic.values())
    for runner in (program_runner(program), session_runner(lower(program))):
        for batch in (1, 4, 6, 9):
            x = torch.randn(batch, 3)
            torch.testing.assert_close(as_model(program, runner)(x), model(x).detach())


def test_differences_are_those_of_the_formulas() -> None:
    expected = [torch.tensor([3.0, 4.0]), torch.tensor([7])]
    shifted = [torch.tensor([3.0, 4.5]), torch.tensor([9])]
    found = differences(
        lambda inputs: expected, {"off": lambda inputs: shifted, "same": lambda inputs: expected}, [[], []]
    )
    assert (found["off"].largest, found["off"].mean) == (0.5, 0.25)
    assert found["off"].relative == pytest.approx(0.1)
    assert (found["same"].largest, found["same"].mean, found["same"].relative) == (0.0, 0.0, 0.0)


def test_the_output_that_moves_most_is_judged_not_all_in_one_norm() -> None:
    """Once scores hid behind boxes in pixels."""
    boxes, scores = torch.tensor([300.0, 400.0]), torch.tensor([0.3, 0.4])
    moved = [boxes + torch.tensor([0.0, 0.5]), scores, scores + torch.tensor([0.0, 0.05])]
    found = differences(lambda _: [boxes, scores, scores], {"a": lambda _: moved}, [[], []])["a"]
    assert (found.relative, found.output) == (pytest.approx(0.1), 2)
    assert found.largest == 0.5


def test_an_output_of_zeros_is_judged_by_the_norm_of_all() -> None:
    wanted, moved = [torch.zeros(2), torch.tensor([3.0, 4.0])], [torch.full((2,), 1e-9), torch.ones(2)]
    found = differences(lambda _: wanted, {"a": lambda _: [moved[0], wanted[1]]}, [[]])["a"]
    assert 0.0 < found.relative < 1e-9
    assert differences(lambda _: wanted[:1], {"a": lambda _: moved[:1]}, [[]])["a"].relative == float("inf")


def test_models_without_floating_outputs_have_no_difference() -> None:
    assert (
        differences(lambda inputs: [torch.tensor([1])], {"a": lambda inputs: [torch.tensor([2])]}, [[]]) == {}
    )


def test_the_example_is_resized_along_the_batch_alone(named: Program) -> None:
    inputs, samples = resized(named, 5)
    assert samples == 5
    assert [tuple(value.shape) for value in inputs] == [(5, 3), (5, 1)]
    assert torch.equal(inputs[0][2], named.flat_example()[0][0])


@pytest.mark.parametrize("returned", [None, "good", float("nan"), torch.zeros(2)])
def test_a_metric_must_be_a_finite_number(returned: object) -> None:
    with pytest.raises(InputError, match=r"evaluate returned .* for the float model"):
        evaluate_model(lambda model: returned, lambda x: x, "the float model")  # type: ignore[arg-type, return-value]


def test_a_metric_may_be_a_tensor_of_one() -> None:
    assert evaluate_model(lambda model: torch.tensor(0.5), lambda x: x, "") == 0.5  # type: ignore[arg-type, return-value]


def test_values_that_are_not_finite_are_not_hidden() -> None:
    """Once, `max(0.0, nan)` said that nothing differs."""
    inf, nan = float("inf"), float("nan")

    def found(expected: list[float], other: list[float]) -> Difference | None:
        pair = [torch.tensor(expected)], [torch.tensor(other)]
        return differences(lambda _: pair[0], {"a": lambda _: pair[1]}, [[]]).get("a")

    assert found([3.0, 4.0, -inf, nan], [3.0, 4.5, -inf, nan]) == Difference(0.5, 0.25, 0.1)
    for other in ([nan, 4.0], [inf, 4.0], [-inf, 4.0]):
        assert found([3.0, 4.0], other) == Difference(inf, inf, inf)
        assert found(other, [3.0, 4.0]) == Difference(inf, inf, inf)
    assert found([inf], [-inf]) == Difference(inf, inf, inf)
    assert found([-inf, -inf], [-inf, -inf]) is None, "nothing was compared"


def test_one_number_per_fixed_batch_cannot_be_put_together() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean()

    program = capture(torch.export.export(Mean().eval(), (torch.randn(4, 3),)))
    call = as_model(program, program_runner(program))
    assert call(torch.ones(4, 3)) == 1
    with pytest.raises(InputError, match="one number for its fixed batch of 4, and was called with 6"):
        call(torch.ones(6, 3))


class TwoInputs(nn.Module):
    """Scores of tokens, those under a mask alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.table(ids) * mask.unsqueeze(-1)


def test_positional_and_keyword_arguments_mix_as_they_do_for_the_model() -> None:
    """Once an argument that the captured call had elsewhere was dropped, or raised KeyError."""
    model = TwoInputs().eval()
    ids, mask = torch.randint(0, 20, (3, 5)), torch.rand(3, 5)
    for example in ((ids, mask), {"ids": ids, "mask": mask}):
        program = capture(model, example)
        face = as_model(program, program_runner(program))
        torch.testing.assert_close(face(ids, mask=mask), model(ids, mask))
        for args, kwargs in (
            ((ids,), {"ids": ids}),
            ((ids,), {"other": mask}),
            ((ids, mask), {"more": mask}),
        ):
            with pytest.raises(InputError):
                face(*args, **kwargs)


def test_outputs_without_a_row_for_each_sample_cannot_be_put_together() -> None:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known = nn.Parameter(torch.randn(5, 7))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2.0, self.known * 3.0

    program = capture(torch.export.export(Prototypes().eval(), (torch.randn(4, 3),)))
    face = as_model(program, program_runner(program))
    with pytest.raises(InputError, match=r"a tensor of \[5, 7\]"):
        face(torch.randn(6, 3))

"""From what a caller passes to flat inputs: example inputs, inferred ones, streams of calibration batches."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.inputs import (
    batches,
    bind,
    bind_labelled,
    infer_example,
    labelled_batches,
    normalize,
)
from fxcompress.graph.program import Program
from tests.architectures.catalog import by_name

# normalize


def test_tensor_tuple_and_dict() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    example = normalize(x)
    assert (len(example.args), example.kwargs) == (1, {})
    assert not example.args[0].requires_grad
    assert [t.shape for t in normalize([x, x]).args] == [(2, 3), (2, 3)]
    assert list(normalize({"x": x, "y": None}).kwargs) == ["x", "y"]
    assert normalize(example) is example


def test_numpy_arrays_become_tensors() -> None:
    array = np.arange(6, dtype=np.float64).reshape(2, 3)[:, ::-1]
    array.setflags(write=False)
    example = normalize((array, {"mask": np.ones(2, dtype=bool)}))
    assert example.args[0].dtype == torch.float64
    assert torch.equal(example.args[0], torch.tensor([[2.0, 1, 0], [5, 4, 3]], dtype=torch.float64))
    assert example.args[1]["mask"].dtype == torch.bool


@pytest.mark.parametrize(
    "wrong",
    [
        "x",
        3,
        (),
        {},
        [1, 2],
        {1: torch.zeros(1)},
        {"x": object()},
        (np.array(["a"]),),
        iter([torch.zeros(1)]),
    ],
    ids=[
        "text",
        "number",
        "no-inputs",
        "no-names",
        "numbers",
        "number-as-name",
        "object",
        "words",
        "iterator",
    ],
)
def test_anything_else_is_refused_with_what_to_pass(wrong: Any) -> None:
    with pytest.raises(InputError, match="pass example_inputs"):
        normalize(wrong)


# infer_example


class Declares(nn.Module):
    """Declares its inputs in the way of one library."""

    def __init__(self, **declared: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        for name, value in declared.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        ({"example_input_array": torch.zeros(1, 3, 11, 11)}, (1, 3, 11, 11)),
        ({"example_input_array": {"x": torch.zeros(1, 3, 12, 12)}}, (1, 3, 12, 12)),
        ({"dummy_inputs": {"x": torch.zeros(4, 3, 13, 13)}}, (4, 3, 13, 13)),
        ({"pretrained_cfg": {"input_size": (3, 14, 14)}}, (2, 3, 14, 14)),
        ({"default_cfg": SimpleNamespace(input_size=(3, 15, 15))}, (2, 3, 15, 15)),
        ({"example_input_array": torch.zeros(1, 7)}, (2, 3, 32, 32)),  # a declaration that does not fit
    ],
)
def test_declared_inputs_come_first(declared: dict[str, Any], shape: tuple[int, ...]) -> None:
    example, note = infer_example(Declares(**declared))
    assert note.startswith("no example inputs were given: ")
    (tensor,) = [*example.args, *example.kwargs.values()]
    assert tuple(tensor.shape) == shape


def conv_net(stem: nn.Conv2d, classes: int = 10) -> nn.Module:
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(stem.out_channels, classes))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (conv_net(nn.Conv2d(3, 4, 3)), (2, 3, 32, 32)),
        (conv_net(nn.Conv2d(1, 4, 3)), (2, 1, 28, 28)),
        (conv_net(nn.Conv2d(3, 4, 7, stride=2)), (2, 3, 224, 224)),
        (conv_net(nn.Conv2d(3, 4, 16, stride=16)), (2, 3, 224, 224)),
        (conv_net(nn.Conv2d(3, 4, 3), classes=1000), (2, 3, 224, 224)),
        (nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 28 * 28, 3)), (2, 1, 32, 32)),
        (nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.Flatten(), nn.Linear(2 * 24 * 24, 3)), (2, 3, 96, 96)),
        (nn.Conv1d(5, 2, 3), (2, 5, 128)),
        (nn.Conv3d(3, 2, 3), (2, 3, 16, 112, 112)),
        (nn.Sequential(nn.Linear(7, 3)), (2, 7)),
        (nn.GRU(6, 4, batch_first=True), (2, 16, 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 16, 8)),
    ],
)
def test_first_layers(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert tuple(infer_example(model)[0].args[0].shape) == shape


def test_ids_stay_within_the_vocabulary() -> None:
    (ids,) = infer_example(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)))[0].args
    assert (ids.dtype, tuple(ids.shape)) == (torch.int64, (2, 16))
    assert 0 <= int(ids.min()) <= int(ids.max()) < 5


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.layer(left) * right * scale


def test_every_required_input_is_given() -> None:
    assert [tuple(t.shape) for t in infer_example(Pair())[0].args] == [(2, 3), (2, 3)]


def test_double_precision_models_get_double_inputs() -> None:
    assert infer_example(nn.Linear(3, 2).double())[0].args[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "key"), [("hf_bert", "input_ids"), ("hf_vit", "pixel_values"), ("hf_llama", "input_ids")]
)
def test_transformers_models(name: str, key: str) -> None:
    model = by_name(name).build()
    example, _ = infer_example(model)
    assert list(example.kwargs) == [key]
    with torch.no_grad():
        model(**example.kwargs)


class Mutating(nn.Module):
    """Counts its calls in a buffer, draws random numbers, and fails on all but one size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.conv = nn.Conv2d(3, 2, 1)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.drop(self.conv(x)) + torch.rand(1)
        return x.reshape(2, 2, 64 * 64)


def test_trying_leaves_no_trace() -> None:
    model = Mutating().train()
    model.drop.eval()
    state = torch.get_rng_state()
    first, _ = infer_example(model)
    assert tuple(first.args[0].shape) == (2, 3, 64, 64)
    assert torch.equal(state, torch.get_rng_state())
    assert float(model.calls) == 0
    assert [m.training for m in model.modules()] == [True, True, False]
    assert not model._forward_hooks
    assert torch.equal(first.args[0], infer_example(model)[0].args[0])


@pytest.mark.parametrize("model", [nn.Identity(), nn.Bilinear(2, 3, 4), Declares(conv=nn.Conv2d(3, 4, 999))])
def test_when_nothing_fits_the_error_says_what_to_pass(model: nn.Module) -> None:
    with pytest.raises(InputError, match="no example inputs can be inferred") as caught:
        infer_example(model)
    assert "torch.randn" in str(caught.value)


# bind and batches


class Named(nn.Module):
    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x * ids


@pytest.fixture(scope="module")
def one() -> Program:
    return capture(nn.Sequential(nn.Conv2d(3, 2, 1)).eval(), torch.randn(2, 3, 4, 4))


@pytest.fixture(scope="module")
def two() -> Program:
    return capture(Named(), {"ids": torch.ones(2, 3, dtype=torch.int64), "x": torch.randn(2, 3)})


X = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABEL = torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    "batch",
    [
        X,
        X.numpy(),
        (X,),
        [X],
        (X, LABEL),
        [X, LABEL],
        ((X,), LABEL),
        {"input": X},
        ({"input": X}, LABEL),
        {"input": X, "labels": LABEL},
    ],
    ids=["tensor", "array", "tuple", "list", "label", "list label", "nested", "dict", "dict label", "labels"],
)
def test_forms_of_a_batch(one: Program, batch: Any) -> None:
    for target in (one, one.signature):
        (flat,) = bind(target, batch)
        assert torch.equal(flat, X)


@pytest.mark.parametrize(
    "batch",
    [(X, LABEL), [X, LABEL], ((X,), LABEL), ({"input": X}, LABEL), {"input": X, "labels": LABEL}],
    ids=["pair", "list", "nested", "dict", "key"],
)
def test_the_label_of_a_batch(one: Program, batch: Any) -> None:
    flat, label = bind_labelled(one, batch)
    assert torch.equal(flat[0], X)
    assert label is LABEL
    (streamed,) = labelled_batches(one, [batch])
    assert streamed[1] is LABEL


def test_inputs_are_no_labels(one: Program, two: Program) -> None:
    assert bind_labelled(one, X)[1] is None
    assert bind_labelled(two, (IDS, Y))[1] is None
    assert bind_labelled(two, (IDS, Y, LABEL))[1] is LABEL
    assert bind_labelled(two, {"x": Y, "ids": IDS, "y": 1})[1] == 1


IDS, Y = torch.ones(4, 3, dtype=torch.int64), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "batch",
    [
        (IDS, Y),
        {"x": Y, "ids": IDS},
        (IDS, Y, LABEL),
        ((IDS, Y), LABEL),
        ({"ids": IDS, "x": Y}, LABEL),
        {"x": Y, "ids": IDS, "y": 1},
    ],
    ids=["tuple", "dict", "label", "nested", "dict label", "labels"],
)
def test_forms_of_a_batch_of_two(two: Program, batch: Any) -> None:
    ids, x = bind(two, batch)
    assert torch.equal(ids, IDS)
    assert torch.equal(x, Y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X[0], r"shape \[3, 4, 4\], expected \[batch, 3, 4, 4\]"),
        (X[:, :2], r"shape \[5, 2, 4, 4\], expected \[batch, 3, 4, 4\]"),
        (X[:0], r"shape \[0, 3, 4, 4\]"),
        ((X, X, X), "3 values"),
        ({"image": X}, r"keys \['image'\].* input"),
        ({"input": X, "mask": X}, "keys"),
        ("x", "a str"),
        (None, "a NoneType"),
        ((1.0,), "a float, not a tensor"),
        ((X.to(torch.uint8) * 255, LABEL), "dtype torch.uint8, expected torch.float32"),
        (X.to(torch.complex64), "dtype torch.complex64"),
    ],
)
def test_batches_that_do_not_fit(one: Program, batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bind(one, batch)


def test_casts_that_are_safe(one: Program, two: Program) -> None:
    assert bind(one, X.double())[0].dtype == torch.float32
    assert bind(one, X.half())[0].dtype == torch.float32
    assert bind(two, (IDS.to(torch.int32), Y))[0].dtype == torch.int64
    assert bind(two, (IDS.bool(), Y))[0].dtype == torch.int64
    with pytest.raises(InputError, match="ids.*float32, expected torch.int64"):
        bind(two, (IDS.float(), Y))


def test_integers_narrow_only_when_they_fit() -> None:
    program = capture(Named(), (torch.ones(2, 3, dtype=torch.int32), torch.randn(2, 3)))
    assert bind(program, (IDS, Y))[0].dtype == torch.int32
    with pytest.raises(InputError, match="int64, expected torch.int32"):
        bind(program, (IDS * 2**40, Y))


def test_inputs_of_one_symbol_agree(two: Program) -> None:
    if two.signature.dynamic["ids"].get(0) != two.signature.dynamic["x"].get(0):
        pytest.fail("the two inputs do not share their batch")
    with pytest.raises(InputError, match="'ids' and 'x' disagree on 'batch': 4 and 3"):
        bind(two, (IDS, Y[:3]))


def test_batches_stream(one: Program) -> None:
    seen: list[int] = []

    def source() -> Iterator[torch.Tensor]:
        for index in range(3):
            seen.append(index)
            yield X

    stream = batches(one, source())
    assert not seen
    next(stream)
    assert seen == [0]
    assert len(list(stream)) == 2


@pytest.mark.parametrize(
    "wrong", [None, X, X.numpy(), {"input": X}, "data.npz", 7], ids=lambda w: type(w).__name__
)
def test_what_is_no_iterable_of_batches(one: Program, wrong: Any) -> None:
    with pytest.raises(InputError, match="calibration"):
        batches(one, wrong)


def test_empty_and_exhausted_data(one: Program) -> None:
    with pytest.raises(InputError, match="no batch"):
        list(batches(one, []))
    spent = iter([X])
    assert len(list(batches(one, spent))) == 1
    with pytest.raises(InputError, match="exhausted"):
        list(batches(one, spent))
    with pytest.raises(InputError, match="only once"):
        batches(one, iter([X]), require_reiterable=True)
    assert len(list(batches(one, [X], require_reiterable=True))) == 1


@pytest.mark.parametrize(
    ("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")]
)
def test_bad_numbers_name_the_input_and_the_batch(one: Program, value: float, kind: str) -> None:
    bad = X.clone()
    bad[1, 2, 0, 0] = value
    with pytest.raises(InputError, match=f"'input_1' holds {kind}") as caught:
        list(batches(one, [X, bad]))
    assert "calibration batch 1" in str(caught.value)
    assert len(list(batches(one, [bad], finite=False))) == 1

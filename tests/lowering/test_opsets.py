from __future__ import annotations

import onnx
import pytest
from onnx import version_converter

from fxcompress.errors import InputError, LoweringError
from fxcompress.lowering import opsets
from fxcompress.lowering.opsets import choose_opset, convert_down, negotiate_ir
from tests.lowering.graphs import model_of


def test_the_default_gives_way_to_an_older_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_opset(None) == 20
    monkeypatch.setattr(opsets, "newest_opset", lambda: 19)
    assert choose_opset(None) == 19


@pytest.mark.parametrize("asked", [13, 12, 99, True, "17", 18.0, 0, -1])
def test_an_impossible_opset_is_refused(asked: object) -> None:
    with pytest.raises(InputError, match="cannot be written") as caught:
        choose_opset(asked)  # type: ignore[arg-type]
    assert caught.value.hint is not None
    assert "from 14 to" in caught.value.hint


def test_an_opset_the_runtime_does_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opsets, "newest_opset", lambda: 19)
    with pytest.raises(InputError, match="up to 19"):
        choose_opset(20)


def test_ir_version_is_lowered_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opsets, "newest_ir", lambda: 9)
    model = onnx.ModelProto(ir_version=10)
    negotiate_ir(model)
    assert model.ir_version == 9
    model.ir_version = 8
    negotiate_ir(model)
    assert model.ir_version == 8


@pytest.mark.parametrize(("operator", "opset"), [("Gelu", 17), ("Relu", 13)])
def test_an_operator_without_an_older_form_is_refused(operator: str, opset: int) -> None:
    """Once with an assertion of the converter's C++ and the path of its source."""
    model = model_of(f"g (float[2] x) => (float[2] y) {{ y = {operator}(x) }}")
    with pytest.raises(
        LoweringError, match=rf"opset {opset}: onnx's converter knows no older form of {operator}\n"
    ) as caught:
        convert_down(model, opset)
    assert caught.value.hint == "ask for opset 18 or newer"


@pytest.mark.parametrize("kind", [version_converter.ConvertError, onnx.shape_inference.InferenceError])
def test_whatever_the_converter_raises_is_a_typed_error(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise kind("no such input\nat some place")

    monkeypatch.setattr(version_converter, "convert_version", fails)
    with pytest.raises(LoweringError, match=r"opset 14: no such input\n"):
        convert_down(onnx.ModelProto(), 14)

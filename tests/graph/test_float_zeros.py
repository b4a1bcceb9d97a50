"""Embeddings whose zero points are no integers: their numbers are kept, their integers are not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.quantization_mappings import get_default_qat_module_mappings

from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower

IDS = torch.arange(20)[:, None]


class Bag(nn.Module):
    """A table whose rows are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(20, 8, mode="sum")
        self.table.qconfig = ao.default_embedding_qat_qconfig

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.table(ids)
        return y


class Table(nn.Module):
    """A table and what reads its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.table(ids).mean(1))
        return y


def bag() -> nn.Module:
    """By `prepare_qat`."""
    torch.manual_seed(0)
    kinds = {**get_default_qat_module_mappings(), nn.EmbeddingBag: torch.ao.nn.qat.EmbeddingBag}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ao.prepare_qat(Bag().train(), mapping=kinds)
        model(IDS)
    return model.eval().apply(ao.disable_observer)


def _prepared() -> nn.Module:
    torch.manual_seed(0)
    mapping = ao.QConfigMapping().set_object_type(nn.Embedding, ao.float_qparams_weight_only_qconfig)
    model = quantize_fx.prepare_fx(Table().eval(), mapping, (IDS,))
    model(IDS)
    return model


def reference() -> nn.Module:
    """By `convert_to_reference_fx`, which rounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_fx.convert_to_reference_fx(_prepared())


def decomposed() -> nn.Module:
    """In operators of quantized_decomposed, which cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_fx._convert_to_reference_decomposed_fx(_prepared())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("build", [bag, reference, decomposed])
def test_rows_are_the_models_own(build: Callable[[], nn.Module]) -> None:
    model = build()
    with torch.no_grad():
        wanted = copy.deepcopy(model)(IDS)
        program = capture(model, IDS)
        torch.testing.assert_close(program(IDS), wanted, rtol=0, atol=1e-6)
    assert any("table.weight: quantized with zero points that are no integers" in n for n in program.notes)
    tables = [name for name, value in program.module.state_dict().items() if value.shape == (20, 8)]
    assert tables == ["table.weight_rounded"]
    assert {node.op_type for node in lower(program).graph.node}.isdisjoint({"DequantizeLinear"})


class Active(nn.Module):
    """An activation with such zero points."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scales", torch.full((4,), 0.02))
        self.register_buffer("zeros", torch.full((4,), 99.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(x, self.scales, self.zeros, 1, 0, 255)


def test_an_activation_with_such_zero_points_is_refused() -> None:
    with pytest.raises(InputError, match="an activation is quantized with zero points that are no integers"):
        capture(Active().eval(), torch.randn(2, 4))

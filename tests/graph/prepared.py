"""Models prepared by torch.ao, in the forms that people bring them: eager, fx, reference, exported."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.quantization import quantize_fx

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A convolution with a batch norm and a rectifier, one alone, a pooling and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.first, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.second, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(self.quant(x))))
        y: Tensor = self.dequant(self.head(self.second(x).mean((2, 3))))
        return y


def _trained(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        model(torch.randn(4, 3, 8, 8, generator=generator))
    return model.eval().apply(ao.disable_observer)


def eager(backend: str = "x86") -> nn.Module:
    """`prepare_qat` on modules, the convolution and its batch norm fused."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Net().train()
        model.qconfig = ao.get_default_qat_qconfig(backend)
        ao.fuse_modules_qat(model, [["first", "norm", "relu"]], inplace=True)
        return _trained(ao.prepare_qat(model))


def by_fx() -> nn.Module:
    """`prepare_qat_fx`: a graph module with a quantizer behind every tensor."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Net().train()
        model.quant = model.dequant = nn.Identity()
        mapping = ao.get_default_qat_qconfig_mapping("x86")
        return _trained(quantize_fx.prepare_qat_fx(model, mapping, (IMAGES,)))


def reference() -> nn.Module:
    """`convert_to_reference_fx`: float layers between tensors of type quint8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_fx.convert_to_reference_fx(copy.deepcopy(by_fx()))


def decomposed() -> nn.Module:
    """The form that pt2e's convert writes too: quantized_decomposed operators in the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_fx._convert_to_reference_decomposed_fx(copy.deepcopy(by_fx()))


class Residual(nn.Module):
    """An addition in the way that eager quantization wants it written, with a layout before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.plus, self.pool, self.head = (
            torch.ao.nn.quantized.FloatFunctional(),
            nn.MaxPool2d(4),
            nn.Linear(64, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.quant(x))
        x = self.pool(self.plus.add_relu(self.body(x), x))
        y: Tensor = self.dequant(self.head(x.flatten(1)))
        return y


def residual() -> nn.Module:
    """`prepare_qat` for Arm: int8 weights with one scale each, activations of the whole uint8 range."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Residual().train()
        model.qconfig = ao.QConfig(
            activation=ao.FakeQuantize.with_args(
                observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
            ),
            weight=ao.default_weight_fake_quant,
        )
        return _trained(ao.prepare_qat(model))


class Faked(nn.Module):
    """Fake quantization by hand, in the operators of PyTorch; int8 activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("scales", self.conv.weight.detach().abs().amax((1, 2, 3)) / 127)
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, 0.03, -5, -128, 127)
        w = torch.fake_quantize_per_channel_affine(self.conv.weight, self.scales, self.zeros, 0, -127, 127)
        y = nn.functional.conv2d(x, w, self.conv.bias)
        return torch.fake_quantize_per_tensor_affine(y, 0.02, 3, -128, 127)


def faked() -> nn.Module:
    """`Faked` with a seed."""
    torch.manual_seed(0)
    return Faked().eval()


FORMS: dict[str, Any] = {
    "eager": eager,
    "residual": residual,
    "fx": by_fx,
    "reference": reference,
    "decomposed": decomposed,
    "operators": faked,
}

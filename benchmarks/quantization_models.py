"""Twelve architectures that quantization is judged on, built from configurations, with random weights.

Nothing is downloaded and nothing is dead: the statistics of batch norms are those of the activations that
noise makes, as they would be after training, and what is initialised so small that it switches a branch off
(ConvNeXt's layer scale, 1e-6) gets the size it grows to. Kernel times do not depend on the weights otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.mobilenet_model import MobileNetV2
from benchmarks.quantization_models_written import DenseNet121, MobileNetV3, ShuffleNetV2
from benchmarks.resnet50_model import ResNet50

SIZE = 224
TOKENS = 128
CLASSES = 1000
VOCABULARY = 30522

Batch = Any
"""What a model takes: a tensor, or a dict of keyword inputs."""


class Logits(nn.Module):
    """A model of `transformers` that takes a tensor, or named ones, and returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        return self.model(pixel_values).logits


class TextLogits(nn.Module):
    """The same for text."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, tokens) twice to (N, classes)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _vision(kind: str, **fields: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **fields)
        return Logits(getattr(transformers, f"{kind}ForImageClassification")(config))

    return build


def _bert() -> nn.Module:
    return TextLogits(transformers.BertForSequenceClassification(transformers.BertConfig()))


def images(count: int, seed: int = 0) -> Tensor:
    """Noise of the spectrum of pictures, coarse and fine: (count, 3, 224, 224)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, SIZE, SIZE)
    for cells in (7, 28, 112, 224):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        total += torch.nn.functional.interpolate(noise, size=SIZE, mode="bilinear") / 2
    return total


def tokens(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Random words, all of them attended to: (count, 128) each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, VOCABULARY, (count, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass(frozen=True)
class Subject:
    """An architecture.

    Attributes:
        name: as it is published.
        make: builds it with random weights.
        parameters: the published count.
        batch: so many samples of what it takes, from a seed.
    """

    name: str
    make: Callable[[], nn.Module]
    parameters: int
    batch: Callable[..., Batch] = images

    def model(self) -> nn.Module:
        """The model in evaluation mode, alive, the same on every call."""
        torch.manual_seed(0)
        model = self.make()
        _enliven(model)
        with torch.no_grad():
            _settle(model, self.batch)
        return model.eval()


SUBJECTS: tuple[Subject, ...] = (
    Subject(
        "ResNet-18",
        _vision("ResNet", layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]),
        11_689_512,
    ),
    Subject("ResNet-50", ResNet50, 25_557_032),
    Subject("MobileNetV2", MobileNetV2, 3_504_872),
    Subject("MobileNetV3-large", MobileNetV3, 5_483_032),
    Subject(
        "EfficientNet-B0",
        _vision(
            "EfficientNet", image_size=SIZE, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280
        ),
        5_288_548,
    ),
    Subject(
        "RegNetY-400MF",
        _vision(
            "RegNet", hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 6], groups_width=8, layer_type="y"
        ),
        4_344_144,
    ),
    Subject("DenseNet-121", DenseNet121, 7_978_856),
    Subject("ShuffleNetV2-1.0x", ShuffleNetV2, 2_278_604),
    Subject("ConvNeXt-T", _vision("ConvNext"), 28_589_128),
    Subject(
        "ViT-S/16",
        _vision("ViT", hidden_size=384, num_attention_heads=6, intermediate_size=1536),
        22_050_664,
    ),
    Subject("Swin-T", _vision("Swin"), 28_288_354),
    Subject("BERT-base", _bert, 109_483_778, tokens),
)
"""The twelve, smallest surprises first."""

BY_NAME: Mapping[str, Subject] = {subject.name: subject for subject in SUBJECTS}


def _enliven(model: nn.Module) -> None:
    """Give norms, scales and biases that start at constants the spread that training gives them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # EfficientNet's start at 0.02 and would be switched off
                module.weight.uniform_(0.5, 1.5, generator=generator)
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1 and float(tensor.abs().max()) <= 1e-5:
                spread = 0.2 if "layer_scale" in name else 0.02
                tensor.copy_(spread * torch.randn(tensor.shape, generator=generator).clamp(-3, 3))


def _settle(model: nn.Module, batch: Callable[..., Batch]) -> None:
    """Take the statistics of batch norms from one batch of noise; everything else is as in evaluation."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(batch(4, seed=1))
    for norm in norms:
        norm.momentum = 0.1

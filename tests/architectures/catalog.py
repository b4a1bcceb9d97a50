"""Every architecture that the whole path is tested on, as data.

`CATALOG` is the list; `by_name` looks one up. `architecture.model(seed)` is ready for an oracle: all
parameters drawn at random, batch-norm statistics measured (see `randomise`). `architecture.build()` is the
model as its author starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from tests.architectures import handwritten, handwritten_tokens, transformers_models
from tests.architectures.randomise import randomise

Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One model to be tested.

    Args:
        name: unique, the test's id.
        construct: makes the model; wrapped by `build`, which seeds and sets eval.
        draw: (generator, batch, length) to inputs; length is ignored by models without a sequence.
        dynamic_shapes: what `torch.export` takes, None for the default (dynamic batch).
        int8: whether the INT8 path applies, else `reason` says why not.
        tags: "convolution", "attention", "sequence" (takes other lengths), "transformers", "grouped", ...
    """

    name: str
    construct: Callable[[], nn.Module]
    draw: Callable[[torch.Generator, int, int], Inputs]
    dynamic_shapes: Any = None
    int8: bool = True
    reason: str = ""
    tags: frozenset[str] = field(default_factory=frozenset)

    def build(self) -> nn.Module:
        """The model in eval mode, the same in every call; the global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.construct().eval()

    def example(self, batch: int = 2, *, seed: int = 0, length: int = 12) -> Inputs:
        """Inputs of the model: a tuple is positional, a dict is by keyword."""
        return self.draw(torch.Generator().manual_seed(seed), batch, length)

    def model(self, seed: int = 0) -> nn.Module:
        """The model in eval mode with every parameter drawn from `seed`, batch-norm statistics measured."""
        return randomise(self.build(), seed, self.example(8, seed=seed + 1))


def _images(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return (torch.randn(batch, 3, 32, 32, generator=generator),)


def _pixels(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}


def _tokens(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return {"input_ids": _ids(generator, batch, length)}


def _masked_tokens(generator: torch.Generator, batch: int, length: int) -> Inputs:
    """Token ids with a padding mask: every row but the first ends in up to half a row of padding."""
    ids = _ids(generator, batch, length)
    padding = torch.randint(1, length // 2 + 1, (batch, 1), generator=generator)
    padding[0] = 0
    mask = (torch.arange(length) < length - padding).to(torch.int64)
    return {"input_ids": ids, "attention_mask": mask}


def _ids(generator: torch.Generator, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, transformers_models.VOCABULARY, (batch, length), generator=generator)


def _image_net(name: str, construct: Callable[[], nn.Module], *tags: str) -> Architecture:
    return Architecture(name, construct, _images, tags=frozenset(tags))


def _language(
    name: str, construct: Callable[[], nn.Module], *tags: str, masked: bool = False
) -> Architecture:
    axes = {0: Dim("batch", min=1, max=1024), 1: Dim("sequence", min=2, max=64)}
    names = ("input_ids", "attention_mask") if masked else ("input_ids",)
    return Architecture(
        name,
        construct,
        _masked_tokens if masked else _tokens,
        dynamic_shapes=dict.fromkeys(names, axes),
        tags=frozenset(("transformers", "attention", "sequence", *tags)),
    )


def _library_vision(name: str, construct: Callable[[], nn.Module], *tags: str) -> Architecture:
    return Architecture(name, construct, _pixels, tags=frozenset(("transformers", *tags)))


_RESNEXT = partial(handwritten.ResNet, handwritten.Bottleneck, groups=4)
_PACKED, _SOFTMAX = handwritten_tokens.PackedAttention, handwritten_tokens.SoftmaxAttention

CATALOG: tuple[Architecture, ...] = (
    _image_net("vgg", handwritten.Vgg, "convolution", "flatten"),
    _image_net("resnet_basic", partial(handwritten.ResNet, handwritten.Basic), "convolution", "residual"),
    _image_net(
        "resnet_bottleneck", partial(handwritten.ResNet, handwritten.Bottleneck), "convolution", "residual"
    ),
    _image_net("preactivation_resnet", handwritten.PreActivationResNet, "convolution", "residual", "pad"),
    _image_net("mobilenet_relu6", partial(handwritten.MobileNet, nn.ReLU6), "convolution", "depthwise"),
    _image_net(
        "mobilenet_hardswish", partial(handwritten.MobileNet, nn.Hardswish), "convolution", "depthwise"
    ),
    _image_net("densenet", handwritten.DenseNet, "convolution", "concatenation"),
    _image_net("unet", handwritten.UNet, "convolution", "concatenation", "transposed"),
    _image_net("resnext", _RESNEXT, "convolution", "grouped", "residual"),
    _image_net("mixer", handwritten_tokens.Mixer, "tokens"),
    _image_net("vit_packed", partial(handwritten_tokens.VisionTransformer, _PACKED), "tokens", "attention"),
    _image_net("vit_softmax", partial(handwritten_tokens.VisionTransformer, _SOFTMAX), "tokens", "attention"),
    _image_net("convnext", handwritten_tokens.ConvNeXt, "convolution", "depthwise", "tokens"),
    _library_vision("hf_resnet", transformers_models.resnet, "convolution", "residual"),
    _library_vision("hf_vit", transformers_models.vit, "tokens", "attention"),
    _language("hf_bert", transformers_models.bert, masked=True),
    _language("hf_bert_eager", partial(transformers_models.bert, "eager"), masked=True),
    _language("hf_gpt2", transformers_models.gpt2, "causal"),
    _language("hf_gpt2_eager", partial(transformers_models.gpt2, "eager"), "causal"),
    _language("hf_llama", transformers_models.llama, "causal", "grouped-query"),
    _language("hf_llama_eager", partial(transformers_models.llama, "eager"), "causal", "grouped-query"),
)

VARIANTS = frozenset(
    {
        "resnet_bottleneck",
        "mobilenet_relu6",
        "vit_softmax",
        "convnext",
        "hf_bert_eager",
        "hf_gpt2_eager",
        "hf_llama_eager",
    }
)
"""Second forms of an architecture; the default tier leaves them to the slow one."""

NAMES = tuple(architecture.name for architecture in CATALOG)


def by_name(name: str) -> Architecture:
    """The architecture called `name`; KeyError otherwise."""
    return {architecture.name: architecture for architecture in CATALOG}[name]

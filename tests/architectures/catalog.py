"""Every architecture that the whole path is tested on, as data.

`CATALOG` is the list; `by_name` looks one up. `architecture.model(seed)` is ready for an oracle: all
parameters drawn at random, batch-norm statistics measured (see `randomise`). `architecture.build()` is the
model as its author starts it. `LIBRARY` are further models of the `transformers` library, each held to one
test of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.export import Dim

from tests.architectures import handwritten, handwritten_tokens, transformers_models
from tests.architectures.architecture import Architecture, Inputs, images, masked_tokens, pixels, tokens
from tests.architectures.catalog_library import LIBRARY

__all__ = ["CATALOG", "LIBRARY", "NAMES", "VARIANTS", "Architecture", "Inputs", "by_name"]


def _image_net(name: str, construct: Callable[[], nn.Module], *tags: str) -> Architecture:
    return Architecture(name, construct, images, tags=frozenset(tags))


def _language(
    name: str, construct: Callable[[], nn.Module], *tags: str, masked: bool = False
) -> Architecture:
    axes = {0: Dim("batch", min=1, max=1024), 1: Dim("sequence", min=2, max=64)}
    names = ("input_ids", "attention_mask") if masked else ("input_ids",)
    return Architecture(
        name,
        construct,
        masked_tokens if masked else tokens,
        dynamic_shapes=dict.fromkeys(names, axes),
        tags=frozenset(("transformers", "attention", "sequence", *tags)),
    )


def _library_vision(name: str, construct: Callable[[], nn.Module], *tags: str) -> Architecture:
    return Architecture(name, construct, pixels, tags=frozenset(("transformers", *tags)))


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
    return {architecture.name: architecture for architecture in (*CATALOG, *LIBRARY)}[name]

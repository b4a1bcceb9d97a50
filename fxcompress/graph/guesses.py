"""What a model's example inputs might be: candidates, best first, for `inputs.infer_example` to try.

The sources, in order: what the ecosystem writes down (Lightning's `example_input_array`, Hugging Face's
`dummy_inputs`, timm's `pretrained_cfg`, a Hugging Face `config`), then the first layers of the model.

Spatial sizes. Many networks accept any size, so the first size tried is the one that the model will be priced
at, and a wrong one misprices it. A convolutional network that looks like ImageNet (its stem strides, it has a
layer of 1000 outputs, or it embeds patches) is tried at 224 first; one channel means digits, 28 first;
everything else is CIFAR-like, 32 first. The remaining sizes are there for networks that flatten, where one
size alone fits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

BATCH = 2
_LARGE = (224, 256, 299, 384, 192, 160, 128, 96, 64, 32, 28, 512)
_SMALL = (32, 28, 64, 96, 128, 224, 256, 299, 384, 16, 8)
_DIGITS = (28, *(size for size in _SMALL if size != 28))
_LENGTHS = (128, 256, 512, 1024, 64, 32, 16, 16000)
_CLIPS = ((16, 112, 112), (8, 32, 32), (16, 64, 64), (16, 224, 224), (16, 32, 32), (8, 16, 16))
_SEQUENCE = 16
_IMAGENET_CLASSES = 1000
_LAYERS_LOOKED_AT = 3

Guess = torch.Tensor | tuple[Any, ...] | dict[str, Any]


def candidates(model: nn.Module) -> Iterator[tuple[str, Guess]]:
    """Yield (where it comes from, example inputs as the user would write them), best first; deterministic."""
    draw = Draw(model)
    for attribute in ("example_input_array", "dummy_inputs"):
        declared = _declared(model, attribute)
        if isinstance(declared, torch.Tensor | tuple | list | dict):
            yield attribute, tuple(declared) if isinstance(declared, list) else declared
    for size in _timm_sizes(model):
        yield "pretrained_cfg", draw.floats(BATCH, *size)
    for guess in _from_config(model, draw):
        yield "config", guess
    copies = _required_inputs(model)
    for source, tensor in _from_layers(model, draw):
        yield source, tensor if copies == 1 else (tensor,) * copies


class Draw:
    """Random tensors on the model's device and in its floating dtype, from a generator of its own."""

    def __init__(self, model: nn.Module) -> None:
        self._generator = torch.Generator().manual_seed(0)
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self._device, self._dtype = first.device, first.dtype

    def floats(self, *shape: int) -> torch.Tensor:
        """Standard normal values of the given shape."""
        return torch.randn(shape, generator=self._generator).to(self._device, self._dtype)

    def ids(self, upper: int, *shape: int) -> torch.Tensor:
        """int64 values in [0, upper)."""
        return torch.randint(0, max(upper, 1), shape, generator=self._generator).to(self._device)


def _declared(model: nn.Module, attribute: str) -> Any:
    """An attribute that the ecosystem sets; a property that raises counts as absent."""
    try:
        return getattr(model, attribute, None)
    except Exception:  # noqa: BLE001  a property of the user's class may raise anything
        return None


def _field(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _timm_sizes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    for attribute in ("pretrained_cfg", "default_cfg"):
        size = _field(_declared(model, attribute), "input_size")
        if isinstance(size, tuple | list) and size and all(isinstance(n, int) and n > 0 for n in size):
            yield tuple(size)


def _required_inputs(model: nn.Module) -> int:
    """How many positional inputs `forward` cannot do without; at least one."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters))


def _from_config(model: nn.Module, draw: Draw) -> Iterator[dict[str, Any]]:
    """Keyword inputs of a Hugging Face model, by what its forward takes and its config states."""
    config = _declared(model, "config")
    if config is None:
        return
    taken = inspect.signature(model.forward).parameters
    images: dict[str, Any] = {}
    if "pixel_values" in taken:
        images["pixel_values"] = draw.floats(BATCH, *_image_shape(config))
    text: dict[str, Any] = {}
    if "input_ids" in taken and isinstance(vocabulary := _nested(config, "vocab_size"), int):
        longest = _nested(config, "max_position_embeddings")
        length = min(_SEQUENCE, longest) if isinstance(longest, int) and longest > 0 else _SEQUENCE
        text["input_ids"] = draw.ids(vocabulary, BATCH, length)
        if "decoder_input_ids" in taken:
            text["decoder_input_ids"] = draw.ids(vocabulary, BATCH, length)
    if images or text:
        yield {**text, **images}
    if "attention_mask" in taken and text:
        yield {**text, **images, "attention_mask": torch.ones_like(text["input_ids"])}
    if "input_values" in taken:
        yield {"input_values": draw.floats(BATCH, 16000)}


def _nested(config: Any, name: str) -> Any:
    """A config field, looked for in the sub-configs of a model of several modalities too."""
    holders = (config, *(_field(config, part) for part in ("text_config", "vision_config", "decoder")))
    return next((value for holder in holders if (value := _field(holder, name)) is not None), None)


def _image_shape(config: Any) -> tuple[int, int, int]:
    channels = _nested(config, "num_channels")
    size = _nested(config, "image_size")
    height, width = size if isinstance(size, tuple | list) and len(size) == 2 else (size, size)
    if not (isinstance(height, int) and isinstance(width, int)):
        height, width = 224, 224
    return (channels if isinstance(channels, int) else 3, height, width)


def _from_layers(model: nn.Module, draw: Draw) -> Iterator[tuple[str, torch.Tensor]]:
    """Inputs that the first layers of a known kind accept, in the order in which the model registers them."""
    found = 0
    for name, module in model.named_modules():
        tensors = _for_layer(model, module, draw)
        first = next(tensors, None)
        if first is None:
            continue
        label = f"{name or 'the model'} ({type(module).__name__})"
        yield label, first
        yield from ((label, tensor) for tensor in tensors)
        found += 1
        if found == _LAYERS_LOOKED_AT:
            return


def _for_layer(model: nn.Module, module: nn.Module, draw: Draw) -> Iterator[torch.Tensor]:
    if isinstance(module, nn.Conv2d):
        yield from (draw.floats(BATCH, module.in_channels, n, n) for n in spatial_sizes(model, module))
    elif isinstance(module, nn.Conv1d):
        yield from (draw.floats(BATCH, module.in_channels, n) for n in _LENGTHS)
    elif isinstance(module, nn.Conv3d):
        yield from (draw.floats(BATCH, module.in_channels, *clip) for clip in _CLIPS)
    elif isinstance(module, nn.Linear):
        yield draw.floats(BATCH, module.in_features)
        yield draw.floats(BATCH, _SEQUENCE, module.in_features)
    elif isinstance(module, nn.Embedding):
        yield draw.ids(module.num_embeddings, BATCH, _SEQUENCE)
    elif isinstance(module, nn.RNNBase):
        yield draw.floats(BATCH, _SEQUENCE, module.input_size)
    elif isinstance(module, nn.MultiheadAttention):
        yield draw.floats(BATCH, _SEQUENCE, module.embed_dim)


def spatial_sizes(model: nn.Module, stem: nn.Conv2d) -> tuple[int, ...]:
    """Heights (and widths) to try, in order, for a model with this first convolution; see the module."""
    classes = any(isinstance(m, nn.Linear) and m.out_features == _IMAGENET_CLASSES for m in model.modules())
    if max(stem.stride) >= 2 or classes:
        return _LARGE
    return _DIGITS if stem.in_channels == 1 else _SMALL

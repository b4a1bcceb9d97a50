"""What an architecture of the catalog is, and the inputs that models take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.architectures import transformers_models
from tests.architectures.randomise import randomise

Inputs = tuple[Any, ...] | dict[str, Any]
Draw = Callable[[torch.Generator, int, int], Inputs]


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
    draw: Draw
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


def images(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return (torch.randn(batch, 3, 32, 32, generator=generator),)


def pixels(generator: torch.Generator, batch: int, length: int, size: int = 32) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}


def masked_pixels(generator: torch.Generator, batch: int, length: int, size: int = 64) -> Inputs:
    """Images with a mask of the pixels that are no padding, as detectors take them."""
    mask = torch.ones(batch, size, size, dtype=torch.int64)
    return {**pixels(generator, batch, length, size), "pixel_mask": mask}


def wave(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return {"input_values": torch.randn(batch, 400, generator=generator)}


def spectrum(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return {"input_values": torch.randn(batch, 32, 16, generator=generator)}


def transcription(generator: torch.Generator, batch: int, length: int) -> Inputs:
    """A spectrogram of 48 frames and the tokens written so far."""
    features = torch.randn(batch, 16, 48, generator=generator)
    return {"input_features": features, "decoder_input_ids": ids(generator, batch, 6)}


def captioned_pixels(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return {**tokens(generator, batch, 12), **pixels(generator, batch, length)}


def translation(generator: torch.Generator, batch: int, length: int) -> Inputs:
    """Source tokens and the target tokens written so far."""
    return {**tokens(generator, batch, 12), "decoder_input_ids": ids(generator, batch, 6)}


def tokens(generator: torch.Generator, batch: int, length: int) -> Inputs:
    return {"input_ids": ids(generator, batch, length)}


def masked_tokens(generator: torch.Generator, batch: int, length: int) -> Inputs:
    """Token ids with a padding mask: every row but the first ends in up to half a row of padding."""
    drawn = ids(generator, batch, length)
    padding = torch.randint(1, length // 2 + 1, (batch, 1), generator=generator)
    padding[0] = 0
    mask = (torch.arange(length) < length - padding).to(torch.int64)
    return {"input_ids": drawn, "attention_mask": mask}


def ids(generator: torch.Generator, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, transformers_models.VOCABULARY, (batch, length), generator=generator)

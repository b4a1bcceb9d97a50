"""Further architectures of the `transformers` library: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch.export import Dim

from tests.architectures import (
    transformers_audio,
    transformers_dense,
    transformers_text,
    transformers_vision,
)
from tests.architectures.architecture import (
    Architecture,
    Draw,
    captioned_pixels,
    masked_pixels,
    masked_tokens,
    pixels,
    spectrum,
    tokens,
    transcription,
    translation,
    wave,
)
from tests.architectures.transformers_models import Builder

_LARGE = frozenset({"hf_mobilevit", "hf_mobilevitv2", "hf_levit"})
"""Classifiers that need images of 64 x 64."""

STATIC: dict[str, str] = {"hf_rt_detr": "it builds its anchors for the batch of the example"}
"""Models whose batch is fixed, and why."""

WITHOUT_RULE: dict[str, tuple[str, ...]] = {"hf_fnet": ("aten.fft_fftn.default",)}
"""Operators that no rule describes, by model: what they touch is frozen and reported."""

CHEAP: frozenset[str] = frozenset(
    f"hf_{name}"
    for name in [
        "convnext",
        "regnet",
        "efficientnet",
        "poolformer",
        "dinov2_swiglu",
        "segformer",
        "yolos",
        "distilbert",
        "fnet",
        "opt",
        "gpt_neox",
        "mamba2",
        "bart",
        "hubert",
        "ast",
        "clip",
    ]
)
"""The quickest of each kind, for the default tier; the others wait for the slow one."""


def _rows(builders: Mapping[str, Builder], draw: Draw, *tags: str) -> list[Architecture]:
    return [
        Architecture(name, construct, draw, tags=frozenset(("transformers", *tags)))
        for name, construct in builders.items()
    ]


def _classifiers(builders: Mapping[str, Builder], *tags: str) -> list[Architecture]:
    large = partial(pixels, size=64)
    return [
        Architecture(
            name,
            construct,
            large if name in _LARGE else pixels,
            tags=frozenset(("transformers", "vision", *tags)),
        )
        for name, construct in builders.items()
    ]


def _text(builders: Mapping[str, Builder], *tags: str, masked: bool = False) -> list[Architecture]:
    """Models of token ids with a dynamic batch and sequence."""
    axes = {0: Dim("batch", min=1, max=1024), 1: Dim("sequence", min=2, max=64)}
    inputs = ("input_ids", "attention_mask") if masked else ("input_ids",)
    return [
        Architecture(
            name,
            construct,
            masked_tokens if masked else tokens,
            dynamic_shapes=dict.fromkeys(inputs, axes),
            tags=frozenset(("transformers", "text", *tags)),
        )
        for name, construct in builders.items()
    ]


LIBRARY: tuple[Architecture, ...] = (
    *_classifiers(transformers_vision.CONVOLUTIONAL, "convolution"),
    *_classifiers(transformers_vision.TOKENS, "attention"),
    *_rows(transformers_dense.SEGMENTERS, partial(pixels, size=64), "vision", "segmentation"),
    *_rows(transformers_dense.DETECTORS, partial(pixels, size=64), "vision", "detector"),
    *_rows(transformers_dense.MASKED_DETECTORS, masked_pixels, "vision", "detector"),
    *_text(transformers_text.ENCODERS, "attention", masked=True),
    *_rows(transformers_text.FIXED_ENCODERS, masked_tokens, "text", "attention"),
    *_text(transformers_text.MIXERS),
    *_text(transformers_text.DECODERS, "attention", "causal"),
    *_rows(transformers_text.FIXED_DECODERS, tokens, "text", "causal"),
    *_rows(transformers_text.STATE_SPACE, tokens, "text", "state-space", "causal"),
    *_rows(transformers_text.SEQ2SEQ, translation, "text", "attention", "sequence-to-sequence"),
    *_rows(transformers_audio.WAVES, wave, "audio", "attention"),
    *_rows(transformers_audio.SPECTRA, spectrum, "audio", "attention"),
    *_rows(transformers_audio.TRANSCRIBERS, transcription, "audio", "sequence-to-sequence"),
    *_rows(transformers_audio.MULTIMODAL, captioned_pixels, "multimodal", "attention"),
)

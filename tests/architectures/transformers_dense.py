"""Segmentation, depth and detection models of `transformers`, built small from configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers
from torch import nn

from tests.architectures.transformers_models import Builder, Results, library, reading

_SEGMENTER = "ForSemanticSegmentation"
_DETECTOR = "ForObjectDetection"

_TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_ENCODER_DECODER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
_RT_DETR: dict[str, Any] = {
    **_ENCODER_DECODER,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [32, 48, 64],
    "decoder_in_channels": [32, 32, 32],
    "num_queries": 6,
    "num_denoising": 0,
    "decoder_n_points": 2,
    "hidden_expansion": 0.5,
    "anchor_image_size": None,
    "num_labels": 5,
}


def _boxes(model: nn.Module) -> nn.Module:
    return Results(model, "logits", "pred_boxes")


def _backbone() -> transformers.PreTrainedConfig:
    return transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _deep_backbone() -> transformers.PreTrainedConfig:
    return transformers.RTDetrResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 32, 48, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def upernet() -> nn.Module:
    return library(
        "UperNet",
        _SEGMENTER,
        backbone_config=_backbone(),
        hidden_size=32,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=5,
    )


def detr() -> nn.Module:
    return _boxes(
        library(
            "Detr", _DETECTOR, backbone_config=_backbone(), num_queries=6, num_labels=5, **_ENCODER_DECODER
        )
    )


def conditional_detr() -> nn.Module:
    return _boxes(
        library(
            "ConditionalDetr",
            _DETECTOR,
            backbone_config=_backbone(),
            num_queries=6,
            num_labels=5,
            **_ENCODER_DECODER,
        )
    )


def deformable_detr() -> nn.Module:
    return _boxes(
        library(
            "DeformableDetr",
            _DETECTOR,
            backbone_config=_backbone(),
            num_queries=6,
            num_feature_levels=4,
            num_labels=5,
            **{**_ENCODER_DECODER, "decoder_layers": 2},
        )
    )


def rt_detr() -> nn.Module:
    return _boxes(library("RTDetr", _DETECTOR, backbone_config=_deep_backbone(), **_RT_DETR))


def mask_former() -> nn.Module:
    swin = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 4, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    decoder = transformers.DetrConfig(
        backbone_config=_backbone(), num_queries=6, dropout=0.0, **_ENCODER_DECODER
    )
    model = library(
        "MaskFormer",
        "ForInstanceSegmentation",
        backbone_config=swin,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=5,
    )
    return Results(model, "class_queries_logits", "masks_queries_logits")


SEGMENTERS: dict[str, Builder] = {
    "hf_segformer": partial(
        library,
        "Segformer",
        _SEGMENTER,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        num_labels=5,
    ),
    "hf_dpt": partial(
        library,
        "DPT",
        _SEGMENTER,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=32,
        use_auxiliary_head=False,
        num_labels=5,
        **{**_TOKENS, "num_hidden_layers": 4},
    ),
    "hf_upernet": upernet,
    "hf_mask_former": mask_former,
}

DETECTORS: dict[str, Builder] = {
    "hf_yolos": partial(
        reading,
        "logits pred_boxes",
        "Yolos",
        _DETECTOR,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=6,
        num_labels=5,
        **_TOKENS,
    ),
    "hf_rt_detr": rt_detr,
}

MASKED_DETECTORS: dict[str, Builder] = {
    "hf_detr": detr,
    "hf_conditional_detr": conditional_detr,
    "hf_deformable_detr": deformable_detr,
}

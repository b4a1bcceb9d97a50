"""Vision models of the `transformers` library, built small from configurations: nothing is downloaded."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.architectures.transformers_models import Builder, library

_TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 10,
}
_RATIO_TOKENS = {name: value for name, value in _TOKENS.items() if name != "intermediate_size"}
_CLASSIFIER = "ForImageClassification"

CONVOLUTIONAL: dict[str, Builder] = {
    "hf_convnext": partial(
        library, "ConvNext", _CLASSIFIER, hidden_sizes=[16, 32], depths=[1, 2], num_stages=2, num_labels=10
    ),
    "hf_convnextv2": partial(
        library, "ConvNextV2", _CLASSIFIER, hidden_sizes=[16, 32], depths=[1, 2], num_stages=2, num_labels=10
    ),
    "hf_regnet": partial(
        library,
        "RegNet",
        _CLASSIFIER,
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 2],
        groups_width=8,
        layer_type="y",
        num_labels=10,
    ),
    "hf_mobilenet_v1": partial(
        library, "MobileNetV1", _CLASSIFIER, image_size=32, depth_multiplier=0.25, num_labels=10
    ),
    "hf_mobilenet_v2": partial(
        library, "MobileNetV2", _CLASSIFIER, image_size=32, depth_multiplier=0.35, num_labels=10
    ),
    "hf_efficientnet": partial(
        library,
        "EfficientNet",
        _CLASSIFIER,
        image_size=32,
        width_coefficient=0.5,
        depth_coefficient=0.5,
        hidden_dim=640,
        kernel_sizes=[3, 3, 5],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 6, 6],
        depthwise_padding=[],
        num_labels=10,
    ),
    "hf_poolformer": partial(
        library,
        "PoolFormer",
        _CLASSIFIER,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        num_labels=10,
    ),
    "hf_focalnet": partial(
        library,
        "FocalNet",
        _CLASSIFIER,
        image_size=32,
        patch_size=4,
        embed_dim=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        num_labels=10,
    ),
    "hf_bit": partial(
        library,
        "Bit",
        _CLASSIFIER,
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_groups=8,
        global_padding="SAME",
        num_labels=10,
    ),
    "hf_mobilevit": partial(
        library,
        "MobileViT",
        _CLASSIFIER,
        image_size=64,
        hidden_sizes=[24, 32, 40],
        neck_hidden_sizes=[8, 16, 24, 32, 32, 40, 64],
        num_attention_heads=4,
        num_labels=10,
    ),
    "hf_mobilevitv2": partial(
        library, "MobileViTV2", _CLASSIFIER, image_size=64, width_multiplier=0.25, num_labels=10
    ),
}

TOKENS: dict[str, Builder] = {
    "hf_deit": partial(library, "DeiT", _CLASSIFIER, **_TOKENS),
    "hf_beit": partial(
        library,
        "Beit",
        _CLASSIFIER,
        use_relative_position_bias=True,
        layer_scale_init_value=0.1,
        **_TOKENS,
    ),
    "hf_dinov2": partial(library, "Dinov2", _CLASSIFIER, mlp_ratio=2, **_RATIO_TOKENS),
    "hf_dinov2_swiglu": partial(
        library, "Dinov2", _CLASSIFIER, mlp_ratio=2, use_swiglu_ffn=True, **_RATIO_TOKENS
    ),
    "hf_swin": partial(
        library,
        "Swin",
        _CLASSIFIER,
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=10,
    ),
    "hf_swinv2": partial(
        library,
        "Swinv2",
        _CLASSIFIER,
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=10,
    ),
    "hf_pvt": partial(
        library,
        "Pvt",
        _CLASSIFIER,
        image_size=32,
        num_encoder_blocks=2,
        depths=[1, 1],
        sequence_reduction_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[4, 2],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        num_labels=10,
    ),
    "hf_pvtv2": partial(
        library,
        "PvtV2",
        _CLASSIFIER,
        image_size=32,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        num_labels=10,
    ),
    "hf_levit": partial(
        library,
        "Levit",
        _CLASSIFIER,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
        down_ops=[["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]],
        num_labels=10,
    ),
    "hf_cvt": partial(
        library,
        "Cvt",
        _CLASSIFIER,
        embed_dim=[16, 32],
        depth=[1, 2],
        num_heads=[1, 2],
        patch_sizes=[7, 3],
        patch_stride=[4, 2],
        patch_padding=[2, 1],
        mlp_ratio=[2.0, 2.0],
        attention_drop_rate=[0.0, 0.0],
        drop_rate=[0.0, 0.0],
        drop_path_rate=[0.0, 0.0],
        qkv_bias=[True, True],
        cls_token=[False, True],
        qkv_projection_method=["dw_bn", "dw_bn"],
        kernel_qkv=[3, 3],
        padding_kv=[1, 1],
        stride_kv=[2, 2],
        padding_q=[1, 1],
        stride_q=[1, 1],
        num_labels=10,
    ),
}

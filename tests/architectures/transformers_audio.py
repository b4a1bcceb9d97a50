"""Audio and multimodal models of the `transformers` library, built small from configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.architectures.transformers_models import VOCABULARY, Builder, library, reading

_WAVE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 32,
    "vocab_size": 16,
    "num_labels": 5,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
_WHISPER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 24,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
_IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}

WAVES: dict[str, Builder] = {
    "hf_wav2vec2": partial(library, "Wav2Vec2", "ForCTC", **_WAVE),
    "hf_wav2vec2_stable": partial(
        library,
        "Wav2Vec2",
        "ForSequenceClassification",
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        **_WAVE,
    ),
    "hf_hubert": partial(library, "Hubert", "ForCTC", **_WAVE),
    "hf_wavlm": partial(library, "WavLM", "ForCTC", num_buckets=16, max_bucket_distance=32, **_WAVE),
    "hf_sew": partial(library, "SEW", "ForCTC", squeeze_factor=2, **_WAVE),
}

SPECTRA: dict[str, Builder] = {
    "hf_ast": partial(
        library,
        "AST",
        "ForAudioClassification",
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=32,
        num_mel_bins=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=5,
    ),
}

TRANSCRIBERS: dict[str, Builder] = {
    "hf_whisper": partial(reading, "logits", "Whisper", "ForConditionalGeneration", **_WHISPER),
}

MULTIMODAL: dict[str, Builder] = {
    "hf_clip": partial(
        reading,
        "logits_per_image",
        "CLIP",
        "Model",
        text_config=_TEXT,
        vision_config=_IMAGE,
        projection_dim=32,
    ),
    "hf_siglip": partial(
        reading, "logits_per_image", "Siglip", "Model", text_config=_TEXT, vision_config=_IMAGE
    ),
}

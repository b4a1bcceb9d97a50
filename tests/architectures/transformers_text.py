"""Text models of the `transformers` library, built small from configurations: nothing is downloaded."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.architectures.transformers_models import VOCABULARY, Builder, library, reading

_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 72,
    "num_labels": 5,
}
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "use_cache": False,
}
_OWN_HEADS = {name: value for name, value in _DECODER.items() if name != "num_key_value_heads"}
_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 72,
    "use_cache": False,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "use_cache": False,
}
_SEQUENCE = "ForSequenceClassification"
_CAUSAL = "ForCausalLM"

ENCODERS: dict[str, Builder] = {
    "hf_roberta": partial(reading, "logits", "Roberta", _SEQUENCE, **_ENCODER),
    "hf_electra": partial(reading, "logits", "Electra", _SEQUENCE, embedding_size=16, **_ENCODER),
    "hf_albert": partial(reading, "logits", "Albert", _SEQUENCE, embedding_size=16, **_ENCODER),
    "hf_mpnet": partial(reading, "logits", "MPNet", _SEQUENCE, **_ENCODER),
    "hf_distilbert": partial(
        reading,
        "logits",
        "DistilBert",
        _SEQUENCE,
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
        num_labels=5,
    ),
    "hf_deberta_v2": partial(
        reading,
        "logits",
        "DebertaV2",
        _SEQUENCE,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        **_ENCODER,
    ),
    "hf_t5_encoder": partial(reading, "logits", "T5", "ForTokenClassification", num_labels=5, **_T5),
    "hf_modernbert": partial(
        reading, "logits", "ModernBert", _SEQUENCE, **{**_ENCODER, "pad_token_id": 0, "local_attention": 8}
    ),
    "hf_squeezebert": partial(
        reading, "logits", "SqueezeBert", _SEQUENCE, **{**_ENCODER, "embedding_size": 32}
    ),
}

MIXERS: dict[str, Builder] = {
    "hf_fnet": partial(
        reading,
        "logits",
        "FNet",
        _SEQUENCE,
        **{name: value for name, value in _ENCODER.items() if name != "num_attention_heads"},
    ),
}

DECODERS: dict[str, Builder] = {
    "hf_opt": partial(
        reading,
        "logits",
        "OPT",
        _CAUSAL,
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        use_cache=False,
    ),
    "hf_gpt_neox": partial(reading, "logits", "GPTNeoX", _CAUSAL, **_OWN_HEADS),
    "hf_gptj": partial(
        reading,
        "logits",
        "GPTJ",
        _CAUSAL,
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        rotary_dim=4,
        use_cache=False,
    ),
    "hf_gpt_neo": partial(
        reading,
        "logits",
        "GPTNeo",
        _CAUSAL,
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        intermediate_size=64,
        max_position_embeddings=80,
        window_size=8,
        use_cache=False,
    ),
    "hf_falcon": partial(
        reading,
        "logits",
        "Falcon",
        _CAUSAL,
        **{name: value for name, value in _OWN_HEADS.items() if name != "intermediate_size"},
    ),
    "hf_falcon_new": partial(
        reading,
        "logits",
        "Falcon",
        _CAUSAL,
        new_decoder_architecture=True,
        num_kv_heads=2,
        **{name: value for name, value in _OWN_HEADS.items() if name != "intermediate_size"},
    ),
    "hf_bloom": partial(
        reading,
        "logits",
        "Bloom",
        _CAUSAL,
        vocab_size=VOCABULARY,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        use_cache=False,
    ),
    "hf_mistral": partial(reading, "logits", "Mistral", _CAUSAL, sliding_window=None, **_DECODER),
    "hf_qwen2": partial(reading, "logits", "Qwen2", _CAUSAL, **_DECODER),
    "hf_qwen3": partial(reading, "logits", "Qwen3", _CAUSAL, head_dim=8, **_DECODER),
    "hf_gemma": partial(reading, "logits", "Gemma", _CAUSAL, head_dim=8, **_DECODER),
    "hf_gemma2": partial(reading, "logits", "Gemma2", _CAUSAL, head_dim=8, sliding_window=8, **_DECODER),
    "hf_phi": partial(reading, "logits", "Phi", _CAUSAL, **_DECODER),
    "hf_phi3": partial(reading, "logits", "Phi3", _CAUSAL, **_DECODER),
    "hf_stablelm": partial(reading, "logits", "StableLm", _CAUSAL, **_DECODER),
    "hf_cohere": partial(reading, "logits", "Cohere", _CAUSAL, **_DECODER),
    "hf_xglm": partial(
        reading,
        "logits",
        "XGLM",
        _CAUSAL,
        vocab_size=VOCABULARY,
        d_model=32,
        ffn_dim=64,
        num_layers=2,
        attention_heads=4,
        max_position_embeddings=64,
        use_cache=False,
    ),
}

SEQ2SEQ: dict[str, Builder] = {
    "hf_t5": partial(reading, "logits", "T5", "ForConditionalGeneration", **_T5),
    "hf_t5_gated": partial(
        reading,
        "logits",
        "T5",
        "ForConditionalGeneration",
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        **_T5,
    ),
    "hf_bart": partial(reading, "logits", "Bart", "ForConditionalGeneration", **_SEQ2SEQ),
    "hf_marian": partial(
        reading, "logits", "Marian", "MTModel", pad_token_id=0, decoder_start_token_id=0, **_SEQ2SEQ
    ),
    "hf_pegasus": partial(reading, "logits", "Pegasus", "ForConditionalGeneration", **_SEQ2SEQ),
}

STATE_SPACE: dict[str, Builder] = {
    "hf_mamba": partial(
        library,
        "Mamba",
        _CAUSAL,
        vocab_size=VOCABULARY,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        expand=2,
        time_step_rank=4,
        use_cache=False,
    ),
    "hf_mamba2": partial(
        library,
        "Mamba2",
        _CAUSAL,
        vocab_size=VOCABULARY,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=1,
        expand=2,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=4,
        use_cache=False,
    ),
}

FIXED_ENCODERS: dict[str, Builder] = {
    "hf_deberta": partial(
        reading,
        "logits",
        "Deberta",
        _SEQUENCE,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        **_ENCODER,
    ),
}
"""Models that compute numbers from the length of the sequence: it stays as it is in the example."""

FIXED_DECODERS: dict[str, Builder] = {
    "hf_xlnet": partial(
        reading,
        "logits",
        "XLNet",
        "LMHeadModel",
        vocab_size=VOCABULARY,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=64,
        use_mems_eval=False,
    ),
}
"""Others to which the library's code allows one length of sequence."""

"""Models of the `transformers` library, built small from configurations: nothing is downloaded.

Each builder returns the library's own class; caches are off, so that a forward pass is a function of its
inputs alone. `attention` is "sdpa" or "eager".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

Builder = Callable[[], nn.Module]
VOCABULARY = 96


def library(kind: str, head: str, **fields: Any) -> nn.Module:
    """The class `kind + head` of `transformers` for a configuration of `kind`, such as "Swin", "Model"."""
    return getattr(transformers, kind + head)(getattr(transformers, f"{kind}Config")(**fields))


class Results(nn.Module):
    """A model of which only the named results are read, as when it is deployed.

    Many models of the library also hand out hidden states, and a model output is frozen.
    """

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, **inputs: Any) -> dict[str, Any]:
        results = self.model(**inputs)
        return {name: results[name] for name in self.names}


def reading(names: str, kind: str, head: str, **fields: Any) -> nn.Module:
    """As `library`, with only the results called `names` (separated by spaces)."""
    return Results(library(kind, head, **fields), *names.split())


def resnet() -> nn.Module:
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[64, 128, 256],
        depths=[1, 2, 1],
        layer_type="bottleneck",
        num_labels=10,
    )
    return ResNetForImageClassification(config)


def vit(attention: str = "sdpa") -> nn.Module:
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=10,
        attn_implementation=attention,
    )
    return ViTForImageClassification(config)


def bert(attention: str = "sdpa") -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=5,
        use_cache=False,
        attn_implementation=attention,
    )
    return BertForSequenceClassification(config)


def gpt2(attention: str = "sdpa") -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config)


def llama(attention: str = "sdpa") -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)

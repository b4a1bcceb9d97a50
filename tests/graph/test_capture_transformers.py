"""Capture of transformers models: dynamic sequences, plain results, caches left out."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph.capture import capture
from fxcompress.graph.wellformed import well_formed
from tests.graph.models import tokens

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
SEQUENCE = {0: "batch", 1: "sequence"}


@pytest.mark.parametrize("attention", ["eager", pytest.param("sdpa", marks=pytest.mark.slow)])
def test_bert_takes_any_batch_and_sequence(attention: str) -> None:
    config = transformers.BertConfig(**SMALL, intermediate_size=64, attn_implementation=attention)
    model = transformers.BertModel(config).eval()
    example = {"input_ids": tokens(1), "attention_mask": torch.ones(1, 12, dtype=torch.int64)}
    program = capture(model, example, dynamic_shapes={name: {1: "sequence"} for name in example})
    well_formed(program)
    assert program.signature.dynamic == {"input_ids": SEQUENCE, "attention_mask": SEQUENCE}
    assert program.signature.outputs == ("last_hidden_state", "pooler_output")
    assert program.signature.out_spec.type is dict
    inputs = {"input_ids": tokens(3, 7), "attention_mask": (tokens(3, 7) > 20).long()}
    found, expected = program(**inputs), model(**inputs)
    for name in program.signature.outputs:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_llama_leaves_its_cache_out(attention: str) -> None:
    config = transformers.LlamaConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=64, attn_implementation=attention
    )
    model = transformers.LlamaForCausalLM(config).eval()
    program = capture(model, {"input_ids": tokens()}, dynamic_shapes={"input_ids": {1: "sequence"}})
    assert program.signature.outputs == ("logits",)
    assert any("use_cache is fixed at False" in note for note in program.notes)
    ids = tokens(1, 9)
    torch.testing.assert_close(program(input_ids=ids)["logits"], model(input_ids=ids, use_cache=False).logits)


def test_swin_masks_written_by_slices_are_constants() -> None:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2], num_heads=[2], window_size=4
    )
    program = capture(transformers.SwinModel(config).eval(), torch.randn(1, 3, 32, 32))
    assert not any("scatter" in str(node.target) for node in program.graph.nodes)


def test_keywords_without_a_parameter_of_their_own_have_a_dynamic_batch() -> None:
    """`torch.export` 2.13 stops with "Must provide a tree_name" on the dynamic dimensions of `**inputs`."""
    model = Keywords().eval()
    forward = model.forward
    program = capture(model, {"x": torch.randn(2, 4), "shift": torch.randn(2, 1)})
    assert program.signature.dynamic == {"x": {0: "batch"}, "shift": {0: "batch"}}
    inputs = {"x": torch.randn(5, 4), "shift": torch.randn(5, 1)}
    torch.testing.assert_close(program(**inputs), model(**inputs))
    assert model.forward == forward, "the model is as it was"


def test_an_operator_of_another_library_is_refused_with_the_way_around_it() -> None:
    """The default of the library's mixtures of experts; `torch.export` takes it as it is."""
    config = transformers.MixtralConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=16, num_local_experts=4, num_experts_per_tok=2
    )
    model = transformers.MixtralForCausalLM(config).eval()
    with pytest.raises(CaptureError, match="of the library 'transformers'") as refusal:
        capture(model, {"input_ids": tokens()})
    assert "set_experts_implementation" in str(refusal.value.hint)
    assert "grouped_mm" in str(refusal.value)
    assert "moe.py" in str(refusal.value.source)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs["x"]) + inputs["shift"]

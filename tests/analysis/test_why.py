"""The path that couples two layers exists for every pair that shrinks together, and follows tied names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.passes.loosening import LOOSEN, loosened
from tests.architectures.programs import captured


@pytest.mark.parametrize("name", ["unet", "densenet", "vit_packed", "hf_gpt2", "hf_llama_eager"])
def test_every_member_of_a_group_is_reached_from_the_first(name: str) -> None:
    analysis = analyse(captured(name))
    for group in analysis.groups:
        for member in group.members[1:]:
            path = analysis.why(group.name.partition(":")[0], str(member))
            assert path[-1] == str(member)


class Tied(nn.Module):
    """An encoder whose transpose decodes, called under a second name; the outputs are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        hidden = self.encode(x).reshape(-1, 2, 4).flatten(1)
        return {"back": (hidden @ self.decode.weight, {"scores": self.head(hidden)})}


def test_paths_go_through_reshapes_and_tied_names() -> None:
    analysis = analyse(capture(Tied().eval(), torch.randn(2, 6)))
    path = analysis.why("decode.weight[0]", "head.weight[1]")
    assert path[0] == "encode.weight[0]"
    assert any("reshape" in line and "test_why.py" in line for line in path)
    assert analysis.why("encode.weight[1]", "head.weight[0]") == []


def test_unknown_names_are_answered_with_close_ones() -> None:
    analysis = analyse(capture(Tied().eval(), torch.randn(2, 6)))
    for wrong in ("encoder.weight[0]", "encode.weight", "encode.weight[2]"):
        with pytest.raises(InputError, match=r"did you mean 'encode.weight\[") as caught:
            analysis.why(wrong, "head.weight[1]")
        assert wrong in caught.value.message


def loose(name: str) -> Analysis:
    return analyse(loosened(captured(name), [rewrite.name for rewrite in LOOSEN]))


def test_parts_of_packed_weights_go_by_the_users_names() -> None:
    """One packed qkv: heads couple all of it, the value's width is coupled with the projection alone."""
    analysis = loose("vit_packed")
    packed = "blocks.0.attention.qkv.weight"
    names = {group.name: group.size for group in analysis.groups if group.name.startswith(packed)}
    assert names == {f"{packed}[0][0:64]:0": 4, f"{packed}[0][0:64]:1": 16, f"{packed}[0][128:192]:1": 16}
    assert not any("_0[" in str(member) for group in analysis.groups for member in group.members)
    out = "blocks.0.attention.proj.weight[1]"
    path = analysis.why(f"{packed}[0][128:192]:1", out)
    assert path[0] == f"{packed}[0][128:192]"
    assert path[-1] == out
    assert analysis.why(f"{packed}[0][0:64]:1", out) == []
    assert analysis.why(f"{packed}[0]", out)[-1] == out
    assert analysis.why(f"{packed}_2[0]:1", out) == path
    assert analysis.group(f"{packed}_2[0]:1") is analysis.group(f"{packed}[0][128:192]:1")


def test_copies_of_a_table_couple_each_layer_with_its_own() -> None:
    analysis = loose("hf_llama")
    layers = [f"model.layers.{layer}.self_attn.q_proj.weight[0]" for layer in range(2)]
    assert analysis.why(layers[0], "model.rotary_emb.inv_freq_0[0]")
    assert analysis.why(f"{layers[0]}:2", f"{layers[1]}:2") == []

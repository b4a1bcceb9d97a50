"""The path that couples two layers exists for every pair that shrinks together, and follows tied names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
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

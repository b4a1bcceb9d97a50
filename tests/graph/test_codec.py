"""Arguments and structures as JSON read back exactly."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxcompress.graph import codec

VALUES = [
    None, True, 3, -0.0, 0.1, 1e-300, math.inf, -math.inf, "text", [1, [2.0, None]], (1, (2,)), {"a": (1,)},
    slice(0, None, 2), 1 + 2j, torch.float16, torch.device("cpu"), torch.device("cuda:1"), torch.strided,
    torch.channels_last, (), [], 2**62,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_arguments_read_back_exactly(value: Any) -> None:
    text = json.dumps(codec.encode_argument(value), allow_nan=False)
    read = codec.decode_argument(json.loads(text), {})
    assert type(read) is type(value)
    assert read == value
    assert repr(read) == repr(value)


def test_nan_and_nodes_read_back() -> None:
    node = fx.Graph().placeholder("x")
    read = codec.decode_argument(codec.encode_argument([node, math.nan]), {"x": node})
    assert read[0] is node
    assert math.isnan(read[1])


@pytest.mark.parametrize(
    "tree",
    [0, (), (0,), [0, (0, {"a": 0})], ((), {"b": 0, "a": [0]}), {1: 0}],
    ids=repr,
)
def test_structures_read_back_exactly(tree: Any) -> None:
    spec = pytree.tree_structure(tree)
    assert codec.decode_spec(json.loads(json.dumps(codec.encode_spec(spec)))) == spec

"""The `.fxc` archive: exact round trips, a fresh process, training and dynamic shapes after loading."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxcompress.graph.archive import load, save
from fxcompress.graph.capture import capture
from tests.architectures.programs import captured
from tests.graph.archives import ENTRIES, assert_equal, entries, leaves, small

ROOT = Path(__file__).parents[2]


def test_round_trip_is_exact(tmp_path: Path) -> None:
    first, second = tmp_path / "a.fxc", tmp_path / "b.fxc"
    small().save(first)
    loaded = load(first)
    assert_equal(small(), loaded)
    save(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    assert list(entries(first)) == ENTRIES


def test_strides_and_ties_survive(tmp_path: Path) -> None:
    save(small(), tmp_path / "a.fxc")
    module = load(tmp_path / "a.fxc").module
    weight = module.get_parameter("conv.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")
    stored = entries(tmp_path / "a.fxc")["tensors.safetensors"]
    assert b'"embed.weight"' in stored
    assert b'"head.weight"' not in stored


@pytest.mark.parametrize("name", ["resnet_basic", "vit_packed", "hf_bert"])
def test_round_trip_of_architectures(name: str, tmp_path: Path) -> None:
    program = captured(name)
    save(program, tmp_path / "a.fxc")
    loaded = load(tmp_path / "a.fxc")
    assert_equal(program, loaded)
    save(loaded, tmp_path / "b.fxc")
    assert (tmp_path / "a.fxc").read_bytes() == (tmp_path / "b.fxc").read_bytes()


class Zoo(nn.Module):
    """Every element type, a scalar, an empty tensor, a transposed and an expanded one."""

    def __init__(self) -> None:
        super().__init__()
        for dtype in ("int8", "uint8", "int32", "int64", "float16", "bfloat16", "float64"):
            self.register_buffer(f"a_{dtype}", torch.arange(3).to(getattr(torch, dtype)))
        self.register_buffer("boolean", torch.tensor([True, False, True]))
        self.register_buffer("scalar", torch.tensor(0.1))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("expanded", torch.ones(1).expand(3))
        self.register_buffer("part", torch.arange(10.0)[2:5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, buffer in self.named_buffers():
            if name == "transposed":
                x = x + (x.float() @ buffer).sum()
            elif name == "empty":
                x = x + torch.cat([x[0], buffer]).sum()
            else:
                x = x + buffer
        q = torch.ops.quantized_decomposed
        y = x.float()
        quantized = q.quantize_per_tensor(y, 0.1, 3, 0, 255, torch.uint8)
        return q.dequantize_per_tensor(quantized, 0.1, 3, 0, 255, torch.uint8) + y.clamp(min=-math.inf)


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    program = capture(Zoo().eval(), torch.randn(2, 3))
    save(program, tmp_path / "zoo.fxc")
    loaded = load(tmp_path / "zoo.fxc")
    assert_equal(program, loaded)
    assert loaded.module.get_buffer("transposed").stride() == (1, 3)
    assert any(
        str(node.target) == "quantized_decomposed.quantize_per_tensor.default" for node in loaded.graph.nodes
    )


def test_training_mode_is_kept_and_training_works(tmp_path: Path) -> None:
    copy = small().copy(share=False).train()
    save(copy, tmp_path / "a.fxc")
    loaded = load(tmp_path / "a.fxc")
    assert loaded.training
    before = loaded.module.get_buffer("norm.running_mean").clone()
    weight = loaded.module.get_parameter("head.weight")
    start = weight.detach().clone()
    optimizer = torch.optim.SGD((p for p in loaded.module.parameters() if p.requires_grad), 0.1)
    out = loaded(*loaded.example.args, **loaded.example.kwargs)
    out["logits"].clamp(min=-1e3).square().sum().backward()
    optimizer.step()
    assert loaded.module.get_parameter("conv.weight").grad is None
    assert not torch.equal(weight, start)
    assert not torch.equal(before, loaded.module.get_buffer("norm.running_mean"))
    assert not loaded.eval().training


def test_shapes_stay_dynamic(tmp_path: Path) -> None:
    save(small(), tmp_path / "a.fxc")
    loaded = load(tmp_path / "a.fxc")
    assert small().signature.dynamic["x"] == loaded.signature.dynamic["x"] == {0: "batch"}
    inputs = {"x": torch.randn(5, 3, 6, 6), "extra": {"shift": torch.randn(4)}}
    with torch.no_grad():
        assert torch.equal(small()(**inputs)["pairs"][0], loaded(**inputs)["pairs"][0])
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        loaded.module, (), inputs, dynamic_shapes={"x": {0: batch}, "extra": {"shift": None}}
    )
    assert exported.module()(**{**inputs, "x": torch.randn(7, 3, 6, 6)})["pairs"][0].shape == (14, 2)


FRESH = """
import sys
sys.modules["tests"] = sys.modules["transformers"] = None
import torch
from fxcompress.graph.archive import load
program = load(sys.argv[1])
with torch.no_grad():
    out = program(*program.example.args, **program.example.kwargs)
torch.save([t for t in torch.utils._pytree.tree_leaves(out)], sys.argv[2])
print(program)
"""


def test_loads_in_a_fresh_process_without_the_model(tmp_path: Path) -> None:
    program = captured("hf_bert")
    save(program, tmp_path / "a.fxc")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "a.fxc"), str(tmp_path / "out.pt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(program)
    for mine, theirs in zip(leaves(program), torch.load(tmp_path / "out.pt"), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_path_of_this_machine_is_stored(tmp_path: Path) -> None:
    save(small(), tmp_path / "a.fxc")
    data = (tmp_path / "a.fxc").read_bytes()
    assert b"archives.py" in data
    for folder in (str(ROOT), str(Path(torch.__file__).parent), str(tmp_path)):
        assert folder.encode() not in data

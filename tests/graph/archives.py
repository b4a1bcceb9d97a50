"""A program worth saving, and ways to look into archives and compare what they hold."""

from __future__ import annotations

import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program

ENTRIES = ["program.json", "tensors.safetensors", "example.safetensors"]


class Small(nn.Module):
    """A convolution, a batch norm, tied weights and a symbolic reshape; takes and returns structures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.embed = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor, *, extra: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = self.norm(self.conv(x)).relu().mean((2, 3))
        y = self.head(self.embed(y) + extra["shift"]).masked_fill(y > 3, float("-inf"))
        pairs = y.reshape(x.shape[0] * 2, 2)
        return {"logits": y, "pairs": (pairs, pairs * 0.1)}


@cache
def small() -> Program:
    """The program of `Small`: a frozen channels-last weight, a note, a history. Shared: copy to edit."""
    torch.manual_seed(0)
    model = Small().eval()
    model.conv.weight.requires_grad_(False)
    model.conv.to(memory_format=torch.channels_last)
    inputs = {"x": torch.randn(2, 3, 6, 6), "extra": {"shift": torch.randn(4)}}
    program = capture(model, inputs)
    program.notes.append("a note, in ünicode")
    program.history.append("captured")
    return program


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, changed: dict[str, bytes]) -> Path:
    """A copy of an archive with other entries, checksums right."""
    contents = {**entries(path), **changed}
    target = path.with_name(f"changed_{path.name}")
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return target


def leaves(program: Program, batch: Program | None = None) -> list[torch.Tensor]:
    example = (batch or program).example
    with torch.no_grad():
        return pytree.tree_leaves(program(*example.args, **example.kwargs))


def assert_equal(a: Program, b: Program) -> None:
    assert str(a) == str(b)
    assert (a.notes, a.history, a.training) == (b.notes, b.history, b.training)
    assert a.signature == b.signature
    left, right = a.module.state_dict(keep_vars=True), b.module.state_dict(keep_vars=True)
    assert list(left) == list(right)
    for name, tensor in left.items():
        other = right[name]
        assert type(tensor) is type(other), name
        assert (tensor.dtype, tensor.requires_grad) == (other.dtype, other.requires_grad), name
        assert torch.equal(tensor, other), name
    assert [walk.source(n) for n in a.graph.nodes] == [walk.source(n) for n in b.graph.nodes]
    assert [walk.module_path(n) for n in a.graph.nodes] == [walk.module_path(n) for n in b.graph.nodes]
    for x, y in zip(leaves(a), leaves(b, a), strict=True):
        assert torch.equal(x, y)

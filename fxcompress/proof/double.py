"""An int8 program in float64 between its quantizations, whose integers are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.graph.execute import Executor
from fxcompress.graph.precision import retype
from fxcompress.graph.program import Program


def in_double(
    program: Program, inputs: Sequence[Tensor], integers: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    """The values of nodes in float64.

    Quantizations give the integers that are given and dequantizations what they give in float32, so that all
    that float64 changes is the arithmetic between the two.

    Args:
        program: a program with Q/DQ, in float32.
        inputs: flat inputs, in float32.
        integers: by name of every quantization.
        wanted: names of nodes.
    """
    executor = _Double(program, integers, wanted)
    with torch.no_grad():
        executor.run_flat(_cast(list(inputs), torch.float32, torch.float64))
    return executor.found


class _Double(Executor):
    def __init__(self, program: Program, integers: Mapping[str, Tensor], wanted: Collection[str]) -> None:
        copy = program.copy()
        retype(copy.graph, torch.float64)
        super().__init__(copy)
        self.integers = integers
        self.wanted = wanted
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, but for the quantizations."""
        known = self.integers.get(n.name)
        return super().run_node(n) if known is None else known

    def after(self, node: fx.Node, value: Any) -> Any:
        """Keep what is wanted."""
        if node.name in self.wanted:
            self.found[node.name] = value
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A stored tensor."""
        return _cast(super().get_attr(target, args, kwargs), torch.float32, torch.float64)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Dequantizations know float32 only."""
        if getattr(target, "namespace", "") != "quantized_decomposed":
            return super().call_function(target, args, kwargs)
        single = _cast((args, kwargs), torch.float64, torch.float32)
        return _cast(super().call_function(target, *single), torch.float32, torch.float64)


def _cast(tree: Any, old: torch.dtype, new: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(new) if leaf.dtype == old else leaf, tree)

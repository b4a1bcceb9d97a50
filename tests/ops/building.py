"""Programs written operator by operator, without tracing: exact overloads, milliseconds each."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.graph.program import Example, Program, Signature

aten = torch.ops.aten


class Net:
    """A graph under construction; every call also computes its value, so that shapes are at hand.

    Inputs have a dynamic batch unless `dynamic` is off. Parameters are random, `p0`, `p1`, ... in order.
    """

    def __init__(self, *, batch: int = 2, dynamic: bool = True, seed: int = 0) -> None:
        self.graph = fx.Graph()
        self.batch, self.dynamic = batch, dynamic
        self.generator = torch.Generator().manual_seed(seed)
        self.values: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.inputs: list[fx.Node] = []

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.values[node].shape)

    def input(self, *shape: int, value: Tensor | None = None) -> fx.Node:
        """A model input of shape `[batch, *shape]`."""
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        self.values[node] = self.noise(self.batch, *shape) if value is None else value
        self.inputs.append(node)
        return node

    def parameter(self, *shape: int, value: Tensor | None = None) -> fx.Node:
        """A parameter, random and of modest scale unless a value is given."""
        value = self.noise(*shape) * (max(shape[1:], default=1) ** -0.5) + 0.1 if value is None else value
        return self._stored(f"p{len(self.tensors)}", nn.Parameter(value))

    def buffer(self, value: Tensor) -> fx.Node:
        return self._stored(f"b{len(self.tensors)}", value)

    def _stored(self, name: str, value: Tensor) -> fx.Node:
        self.tensors[name] = value
        node = self.graph.get_attr(name)
        self.values[node] = value.detach()
        return node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        found_args, found_kwargs = fx.map_arg((args, kwargs), self.values.__getitem__)
        self.values[node] = target(*found_args, **found_kwargs)
        return node

    def item(self, node: fx.Node, place: int) -> fx.Node:
        """One of several results."""
        found = self.graph.call_function(operator.getitem, (node, place))
        self.values[found] = self.values[node][place]
        return found

    def size(self, node: fx.Node, dim: int) -> fx.Node:
        return self(aten.sym_size.int, node, dim)

    def channels(self, width: int, *space: int) -> fx.Node:
        """Prunable channels `[batch, width, *space]`, from a convolution (or a linear) of an input."""
        if not space:
            return self(aten.linear.default, self.input(3), self.parameter(width, 3), self.parameter(width))
        rank = len(space)
        convolution = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[rank]
        weight, bias = self.parameter(width, 3, *[1] * rank), self.parameter(width)
        return self(convolution, self.input(3, *space), weight, bias)

    def features(self, *shape: int, width: int) -> fx.Node:
        """Prunable features `[batch, *shape, width]`, from a linear of an input."""
        return self(
            aten.linear.default, self.input(*shape, 3), self.parameter(width, 3), self.parameter(width)
        )

    def read(self, node: fx.Node) -> fx.Node:
        """Consume every position of a `[batch, ..]` tensor with a weight of its own: `[batch, 3]`."""
        if self.values[node].dtype != torch.float32:
            node = self(aten.to.dtype, node, torch.float32)
        flat = self(aten.flatten.using_ints, node, 1)
        return self(aten.mm.default, flat, self.parameter(self.shape(flat)[1], 3))

    def program(self, *outputs: fx.Node) -> Program:
        """The finished program; outputs that are not given in `[batch, ..]` form are allowed."""
        self.graph.output(tuple(outputs))
        example = tuple(self.values[node] for node in self.inputs)
        structure = pytree.tree_flatten((example, {}))[1]
        names = tuple(node.name for node in self.inputs)
        results = pytree.tree_flatten(tuple(range(len(outputs))))[1]
        signature = Signature(
            names,
            tuple(f"output_{place}" for place in range(len(outputs))),
            {name: {0: "batch"} for name in names if self.dynamic},
            structure,
            results,
        )
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        ranked = sorted(self.graph.nodes, key=lambda node: {"placeholder": 0, "get_attr": 1}.get(node.op, 2))
        for node in ranked:
            if node.users or node.op in ("placeholder", "output"):
                mapping[node] = graph.node_copy(node, mapping.__getitem__)
        used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        return Program.build(graph, tensors, signature, Example(example, {}))

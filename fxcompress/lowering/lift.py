"""A program as a `torch.export.ExportedProgram`, node for node, without tracing it again.

`torch.onnx.export` takes an exported program, whose tensors are inputs of its graph. Lifting turns every
get_attr into such an input and keeps everything else, names included, so that what the exporter records about
a node's origin is the program's own node name. (Exporting `program.module` again would give the nodes new
names, cost a second trace, and may specialise a dimension that the program keeps dynamic.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.lowering.decompose import LocalProgram


def lift(program: Program) -> LocalProgram:
    """The same graph with its tensors as inputs, flat inputs and flat outputs; `program` is not changed.

    Inputs get fresh symbols from the signature, so that no decision of an earlier trace is carried along.
    """
    fresh = program.copy()
    fresh.infer_from_example()
    graph = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    tensors: dict[str, torch.Tensor] = {}
    inputs: list[InputSpec] = []
    for node in walk.tensor_nodes(fresh):
        name = str(node.target)
        tensors[name] = walk.tensor(fresh, node)
        placed[node] = _placeholder(graph, node, f"p_{node.name}")
        inputs.append(_tensor_spec(placed[node], name, tensors[name]))
    for node in walk.placeholders(fresh):
        placed[node] = _placeholder(graph, node, node.name)
        inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(placed[node].name), None))
    for node in fresh.graph.nodes:
        if node.op == "call_function":
            placed[node] = graph.node_copy(node, placed.__getitem__)
    results = [placed[node] for node in walk.output_values(fresh)]
    end = graph.output(tuple(results))
    end.meta["val"] = tuple(node.meta["val"] for node in results)
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    return LocalProgram(
        root=fx.GraphModule(torch.nn.Module(), graph),
        graph=graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=tensors,
        range_constraints={},
        module_call_graph=[_flat_call(len(walk.placeholders(fresh)), len(results))],
        example_inputs=(tuple(fresh.flat_example()), {}),
    )


def _placeholder(graph: fx.Graph, node: fx.Node, name: str) -> fx.Node:
    placeholder = graph.create_node("placeholder", name, name=name)
    placeholder.meta = dict(node.meta)
    return placeholder


def _tensor_spec(node: fx.Node, name: str, tensor: torch.Tensor) -> InputSpec:
    if isinstance(tensor, torch.nn.Parameter):
        return InputSpec(InputKind.PARAMETER, TensorArgument(node.name), name)
    return InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True)


def _flat_call(inputs: int, outputs: int) -> ModuleCallEntry:
    """The call of the whole module: positional tensors in, a tuple of tensors out."""
    arguments: Any = (tuple(range(inputs)), {})
    in_spec, out_spec = pytree.tree_structure(arguments), pytree.tree_structure(tuple(range(outputs)))
    return ModuleCallEntry("", ModuleCallSignature([], [], in_spec, out_spec))

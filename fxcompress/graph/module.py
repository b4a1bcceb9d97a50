"""The `GraphModule` of a program, assembled from a graph, named tensors and a signature."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxcompress.graph.modes import set_training
from fxcompress.graph.signature import Signature


class ProgramModule(fx.GraphModule):
    """A graph module called like the user's model, whose `train()` and `eval()` rewrite the graph."""

    def train(self, mode: bool = True) -> Self:
        """Switch every batch norm and dropout of the graph."""
        super().train(mode)
        if set_training(self.graph, mode):
            self.recompile()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ProgramModule:
        tensors = {name: copy.deepcopy(tensor, memo) for name, tensor in named_tensors(self)}
        return _owning(copy_graph(self.graph), tensors, self.training)


def assemble(
    graph: fx.Graph, tensors: Mapping[str, torch.Tensor], signature: Signature, *, training: bool = False
) -> ProgramModule:
    """A module that owns `graph` and holds `tensors` under their qualified names; parameters stay parameters.

    `training` is the mode that the graph is in; no node changes.
    """
    set_codegen(graph, signature)
    return _owning(graph, tensors, training)


def _owning(graph: fx.Graph, tensors: Mapping[str, torch.Tensor], training: bool) -> ProgramModule:
    module = ProgramModule(nn.Module(), fx.Graph(), "Program")
    for name, tensor in tensors.items():
        attach(module, name, tensor)
    module.graph = graph
    for part in module.modules():
        part.training = training
    return module


def set_codegen(graph: fx.Graph, signature: Signature) -> None:
    """Make the generated `forward` take and return the structures of the signature."""
    args_spec, kwargs_spec = signature.in_spec.children()
    names = [f"arg_{i}" for i in range(args_spec.num_children)]
    names = [_plain(args_spec, signature.inputs, i) or name for i, name in enumerate(names)]
    names.extend(kwargs_spec.context)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, signature.in_spec, signature.out_spec)))


def _plain(args_spec: pytree.TreeSpec, inputs: tuple[str, ...], index: int) -> str | None:
    """The placeholder's own name for a positional input that is a tensor, not a structure."""
    children = args_spec.children()
    if not children[index].is_leaf():
        return None
    return inputs[sum(child.num_leaves for child in children[:index])]


def attach(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor at a dotted name, making the submodules on the way; replaces what is there."""
    *path, leaf = name.split(".")
    owner = module
    for part in path:
        child = owner._modules.get(part)
        if child is None:
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    owner._parameters.pop(leaf, None)
    owner._buffers.pop(leaf, None)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)


def detach(module: nn.Module, name: str) -> None:
    """Remove a tensor, and the submodules that its removal leaves empty."""
    *path, leaf = name.split(".")
    owners = [module]
    for part in path:
        owners.append(owners[-1].get_submodule(part))
    owners[-1]._parameters.pop(leaf, None)
    owners[-1]._buffers.pop(leaf, None)
    for owner, part, child in reversed(list(zip(owners, path, owners[1:], strict=False))):
        if not (child._parameters or child._buffers or child._modules):
            del owner._modules[part]


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer under every name it has, parameters first, in module order."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def same_tensor(tensor: torch.Tensor) -> tuple[object, ...]:
    """A key that is equal for two names of one tensor, also when they are distinct objects on one storage."""
    return (
        tensor.untyped_storage()._cdata,
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )


def tied(module: nn.Module) -> dict[tuple[object, ...], list[str]]:
    """Tensors by identity, each with all its names, first name first; empty tensors are never tied."""
    names: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in named_tensors(module):
        key = same_tensor(tensor) if tensor.numel() else (name,)
        names.setdefault(key, []).append(name)
    return names


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """The same graph with the same names; node metadata is copied one level deep."""
    copied = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        mapping[node] = copied.node_copy(node, mapping.__getitem__)
    copied.set_codegen(graph._codegen)
    return copied


def used_names(nodes: Iterable[fx.Node]) -> set[str]:
    """Targets of the graph's get_attr nodes."""
    return {str(node.target) for node in nodes if node.op == "get_attr"}

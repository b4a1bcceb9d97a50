"""Models as people bring them: wrappers are looked through, what cannot be captured is refused with a reason.

Names in programs and plans are those of the model inside the wrappers: `conv1.weight`, not
`module.conv1.weight` (data parallel) or `_orig_mod.conv1.weight` (`torch.compile`). Parametrizations, weight
norm and spectral norm keep the names of what is trained (`conv1.parametrizations.weight.original`,
`conv1.weight_orig`), which are the names of the model's state dict.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.fx import Node
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program

HOW = "pass a torch.nn.Module, a torch.export.ExportedProgram or the path of a .pt2 file"

_WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped(model: Any) -> nn.Module:
    """The module inside `torch.compile`'s, a data-parallel or an averaging wrapper.

    Raises:
        InputError: it is no module, or one that cannot be captured: TorchScript, on another device, or with
            parameters that do not exist yet.
    """
    while isinstance(model, OptimizedModule | nn.DataParallel | DistributedDataParallel | AveragedModel):
        model = model.module if isinstance(model, _WRAPPERS) else model._orig_mod
    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(model).__name__} is not a model", hint=HOW)
    _refuse_modules(model)
    _refuse_tensors(model)
    return model


def _refuse_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f" ({name})" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"a TorchScript module{where} has no Python to capture",
                hint="pass the module it was made from",
            )


def _refuse_tensors(model: nn.Module) -> None:
    for name, tensor in _tensors(model):
        if is_lazy(tensor):
            raise InputError(
                f"{name} has no shape yet: the model has a lazy module that never ran",
                hint="call the model once and load its weights first",
            )
        if tensor.is_meta:
            raise InputError(
                "the model has no weights: it is on the meta device", hint=f"load its weights first: {name}"
            )
        if tensor.device.type != "cpu":
            raise InputError(
                f"the model is on {tensor.device} ({name})",
                hint="pass model.cpu() and inputs on the CPU: that is where programs are captured and proven",
            )
        if tensor.is_inference():
            raise InputError(
                f"{name} was made under torch.inference_mode, so that nothing can be recorded about it",
                hint="pass copy.deepcopy(model), made outside of it",
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def settle_masks(program: Program) -> list[str]:
    """mul(to(weight_mask), weight_orig) => the same, with the masked values of `weight_orig` set to zero.

    `torch.nn.utils.prune` keeps the values under a mask. Outputs do not depend on them, but what ranks
    channels reads parameters: it must see what the model computes with. The product stays, so that training
    keeps the mask. Returns a note where there were masks.
    """
    names = [name for node in program.graph.nodes if (name := _masked(program, node)) is not None]
    if not names:
        return []
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [f"masks of torch.nn.utils.prune stay in force; what they hide in {listed} is set to zero"]


def _masked(program: Program, node: Node) -> str | None:
    """Settle one product of a parameter with its mask; return the parameter's name."""
    if node.target is not torch.ops.aten.mul.Tensor:
        return None
    operands = _operands(node)
    by_name = {str(item.target): item for item in operands if item.op == "get_attr"}
    for name in by_name:
        base = name.removesuffix("_orig")
        if base == name or f"{base}_mask" not in by_name or len(by_name) != 2:
            continue
        weight, mask = walk.tensor(program, by_name[name]), walk.tensor(program, by_name[f"{base}_mask"])
        if weight.shape != mask.shape or not bool(((mask == 0) | (mask == 1)).all()):
            continue
        if not _only_masked(by_name[name], by_name[f"{base}_mask"]):
            continue
        edit.set_tensor(program, name, weight.detach() * mask)
        return name
    return None


def _operands(node: Node) -> list[Node]:
    """What an operator reads, through changes of type."""
    return [
        item.all_input_nodes[0] if item.target is torch.ops.aten.to.dtype else item
        for item in node.all_input_nodes
    ]


def _only_masked(weight: Node, mask: Node) -> bool:
    """Whether a parameter is read under its mask alone: one that is tied is also read without it."""
    casts = [reader for reader in weight.users if reader.target is torch.ops.aten.to.dtype]
    readers = [reader for source in (weight, *casts) for reader in source.users if reader not in casts]
    return all(
        reader.target is torch.ops.aten.mul.Tensor and set(_operands(reader)) == {weight, mask}
        for reader in readers
    )

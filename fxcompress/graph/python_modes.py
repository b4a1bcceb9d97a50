"""What a model's Python does differently in training: seen in its code, since a graph shows one mode only."""

from __future__ import annotations

from types import CodeType
from typing import Any

from torch import fx, nn

from fxcompress.errors import InputError
from fxcompress.graph.modes import in_training

_RESTORED = (
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._NormBase,
    nn.Sequential,
)
"""Modules whose training mode is a node's argument, so that `program.train()` brings it back."""


def refuse_training(model: nn.Module) -> None:
    """Raise InputError for a module that is in training mode and would do something else in evaluation.

    The mode of a graph is in its nodes: what torch.export makes is always flagged as training, and refuses to
    be told otherwise.
    """
    for name, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            refused = next((node for node in module.graph.nodes if in_training(node)), None)
            if refused is not None:
                raise InputError(
                    f"the graph {name or 'of the model'} was made in training mode: {refused.format_node()}",
                    hint="call model.eval() before torch.export, or move_exported_model_to_eval after it",
                )
        elif module.training and _reads_mode(module):
            raise InputError(
                f"the model is in training mode ({name or 'the model'}: {type(module).__name__})",
                hint="call model.eval() before capturing; program.train() brings training mode back",
            )


def notes_on_modes(model: nn.Module) -> list[str]:
    """What `program.train()` will not bring back."""
    notes = []
    kinds = {
        type(module).__name__
        for module in model.modules()
        if not isinstance(module, _RESTORED) and _mentions(vars(type(module)).get("forward"))
    }
    if kinds:
        listed = ", ".join(sorted(kinds))
        notes.append(
            f"{listed} read self.training; in training the program switches batch norms and dropouts only"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None:
            notes.append(f"{name} keeps a cumulative average, which training the program does not continue")
    return notes


def _reads_mode(module: nn.Module) -> bool:
    """Whether a module's class looks at `self.training`, except a dropout that drops nothing."""
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0:
        return False
    classes = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    return any(_mentions(value) for kind in classes for value in vars(kind).values())


def _mentions(function: Any) -> bool:
    return any("training" in names for names in _names(getattr(function, "__code__", None)))


def _names(code: CodeType | None) -> list[tuple[str, ...]]:
    if code is None:
        return []
    inner = [names for const in code.co_consts if isinstance(const, CodeType) for names in _names(const)]
    return [code.co_names, *inner]

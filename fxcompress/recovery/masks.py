"""Masks that hold while a model trains: zeroed weights are zeroed again after each step of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.apply_masks import ApplyMasks
from fxcompress.plan.masking import plan_sparsity
from fxcompress.plan.schedule import Schedule
from fxcompress.plan.sparsity import Sparsify, SparsityPlan


@dataclass(frozen=True)
class MaskHook:
    """Keeps the zeros of a plan in a module that trains: the user's own, or a program's.

    Call `apply(module)` after each `optimizer.step()`, or let `attach` do it.
    """

    plan: SparsityPlan

    def apply(self, module: nn.Module) -> None:
        """Zero the masked weights in place; raises InputError where a mask fits no parameter."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, mask in self.plan.masks.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != mask.shape:
                found = "no such parameter" if parameter is None else f"shape {list(parameter.shape)}"
                raise InputError(
                    f"the mask of {name} has shape {list(mask.shape)}; the module has {found}",
                    hint="pass the module that the masks were made for, not wrapped",
                )
            with torch.no_grad():
                parameter.masked_fill_(~mask.to(parameter.device), 0.0)

    def attach(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> RemovableHandle:
        """Apply after each step of an optimizer, and once now; returns the handle that ends it."""
        self.apply(module)

        def again(*_: Any) -> None:
            self.apply(module)

        return optimizer.register_step_post_hook(again)


@dataclass(frozen=True)
class Sparse:
    """What gradual sparsification gives: the program, the masks, and the share zeroed after each round."""

    program: Program
    plan: SparsityPlan
    history: tuple[float, ...]


def sparsify_gradually(
    model: nn.Module | Program,
    example_inputs: Any = None,
    *,
    sparsify: Sparsify,
    schedule: Schedule | None = None,
    train: Callable[[Program, MaskHook], None] | None = None,
) -> Sparse:
    """Zero more and more weights, training in between under the masks reached so far.

    The model given stays as it is. A mask never comes back: each round's masks zero what the last one's did.
    N:M patterns go M:M, ..., N:M, a whole weight of every group at a time.

    Args:
        model: a module, or a program in evaluation mode.
        example_inputs: as `capture` takes them; leave out for a program.
        sparsify: what is zeroed in the end.
        schedule: how the share rises; cubic in 5 rounds by default.
        train: `train(program, hook)` trains the program, which is in training mode, for one round; call
            `hook.apply(program.module)` after each optimizer step. Masks are applied once more after it.
    """
    steps = schedule or Schedule()
    program = (model if isinstance(model, Program) else capture(model, example_inputs)).copy(share=False)
    plan: SparsityPlan | None = None
    history: list[float] = []
    for step in range(1, steps.rounds + 1):
        options = _at(sparsify, steps.removed(step, sparsify.share))
        if options is not None:
            plan = plan_sparsity(program, options, within=plan)
        if plan is not None:
            program = ApplyMasks(plan).run(program).program
        held = plan or SparsityPlan({}, {}, 0)
        if train is not None:
            program = program.copy(share=False).train()
            train(program, MaskHook(held))
            MaskHook(held).apply(program.module)
            program.eval()
        sizes = sum(mask.numel() for mask in held.masks.values())
        history.append(held.zeroed / sizes if sizes else 0.0)
    assert plan is not None
    return Sparse(program, plan, tuple(history))


def _at(options: Sparsify, share: float) -> Sparsify | None:
    """The options for a share on the way; None where nothing goes yet."""
    if options.counts is None:
        return replace(options, ratio=share) if share > 0 else None
    kept, group = options.counts
    left = max(kept, group - int(share * group + 1e-9))
    return replace(options, ratio=None, pattern=f"{left}:{group}") if left < group else None

"""The arguments of one `optimize` call, checked before any work begins."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, SupportsFloat, TypeGuard

import numpy as np
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxcompress.api.result import Plan
from fxcompress.errors import InputError, NotSupported
from fxcompress.graph import walk
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.opsets import choose_opset
from fxcompress.measure import ModelCall
from fxcompress.pipeline import Progress
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import Quantize
from fxcompress.plan.quantized_models import refuse_removal, refuse_requantization
from fxcompress.recipes.reading import load_recipe
from fxcompress.recipes.recipe import Recipe, recipe_of
from fxcompress.targets.target import Target

Model = nn.Module | ExportedProgram | Program | str | os.PathLike[str]
OBJECTIVES = ("latency", "size")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for. `optimize` documents the fields; the recipe holds `prune` and `quantize` too."""

    recipe: Recipe
    target: Target
    calibration: Iterable[Any] | None = None
    evaluate: Callable[[ModelCall], float] | None = None
    max_drop: float | None = None
    objective: str = "latency"
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    opset: int | None = None
    threads: int = 1
    batch: int = 1
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.quantize is not None and self.quantize.needs_calibration and self.calibration is None:
            raise InputError(
                "quantize needs calibration data: ranges of activations are measured, not guessed",
                hint="pass calibration=[batch, ...] or a DataLoader: some dozens of typical inputs; a batch "
                "is a tensor, a tuple or dict of inputs, or (inputs, label)",
            )
        if self.evaluate is not None and not callable(self.evaluate):
            raise InputError(
                f"evaluate is a {type(self.evaluate).__name__}, not a function",
                hint="pass a function of one argument: evaluate(f) calls f like the model, returns a float",
            )
        self._check_drop()
        if self.objective not in OBJECTIVES:
            raise InputError(
                f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}",
                hint="latency hands out the fastest candidate, size the smallest that is not much slower",
            )
        for name, value in (("threads", self.threads), ("batch", self.batch)):
            if not _whole(value) or value < 1:
                raise InputError(f"{name}={value!r} is not a positive number", hint=f"leave {name} out for 1")
        choose_opset(self.opset)

    def _check_drop(self) -> None:
        if self.max_drop is None:
            return
        bound = _number(self.max_drop)
        if bound is None or not bound >= 0:
            raise InputError(
                f"max_drop={self.max_drop!r} is not a loss of the metric",
                hint="max_drop=0.01 accepts a metric that is lower by at most 0.01, in the metric's own unit",
            )
        object.__setattr__(self, "max_drop", bound)  # a plain number, which a report can hold

    @property
    def prune(self) -> Prune | None:
        """How to prune, if at all; a plan that was made before leaves nothing to choose."""
        return Prune() if self.plan is not None else self.recipe.prune

    @property
    def plan(self) -> PruningPlan | None:
        """The pruning plan to apply, where it was made before."""
        return self.recipe.plan

    @property
    def quantize(self) -> Quantize | None:
        """How to quantize, if at all."""
        return self.recipe.quantize

    @property
    def settings(self) -> dict[str, Any]:
        """What the report repeats of the arguments."""
        return {
            "prune": self._pruning(),
            "quantize": None if self.quantize is None else vars(self.quantize),
            "objective": self.objective,
            "max_drop": self.max_drop,
            "target": self.target.name,
            "threads": self.threads,
            "batch": self.batch,
            "opset": self.opset,
            "recipe": str(self.recipe),
        }

    def _pruning(self) -> Any:
        if self.plan is not None:
            return "a plan that was made before"
        return None if self.prune is None else self.prune.to_dict()


def pruning_options(prune: float | Prune | PruningPlan | Plan | None) -> Prune | PruningPlan | None:
    """Turn `prune=0.5` into options, which check themselves; of a result's plan, take the pruning."""
    if isinstance(prune, Plan):
        if prune.pruning is None:
            raise InputError("this plan prunes nothing", hint="pass the plan of a result that was pruned")
        return prune.pruning
    if prune is None or isinstance(prune, Prune | PruningPlan):
        return prune
    ratio = _number(prune)
    if ratio is None:
        raise InputError(
            f"prune={reprlib.repr(prune)} is neither a share of the MACs nor a Prune or PruningPlan",
            hint="prune=0.5 removes half of the multiply-accumulates; Prune(budget=Budget(ms=3)) states a "
            "budget; PruningPlan.load(path) reads a plan",
        )
    return Prune(ratio=ratio)


def quantization_options(quantize: str | Quantize | None) -> Quantize | None:
    """Turn `quantize="int8"`, a mode, into options; they check themselves."""
    if quantize is None or isinstance(quantize, Quantize):
        return quantize
    if not isinstance(quantize, str):
        raise InputError(f"quantize={quantize!r} is no mode and no Quantize", hint='pass quantize="int8"')
    return Quantize(mode=quantize)


def stages(
    prune: float | Prune | PruningPlan | Plan | None,
    quantize: str | Quantize | None,
    recipe: str | os.PathLike[str] | Recipe | None,
) -> Recipe:
    """The recipe that was passed, or the one that the keywords stand for; not both.

    Raises:
        InputError: both, or a recipe that is none.
    """
    if recipe is None:
        return recipe_of(pruning_options(prune), quantization_options(quantize))
    if prune is not None or quantize is not None:
        raise InputError(
            "recipe= stands for prune= and quantize=: pass either",
            hint="write the stages into the recipe, or leave it out",
        )
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str | os.PathLike):
        raise InputError(
            f"recipe={recipe!r} is neither a Recipe nor a path", hint="pass the path of a .toml file"
        )
    return load_recipe(recipe)


def refuse_unmeasurable(request: Request, program: Program) -> None:
    """Refuse a bound on the error of outputs that have none.

    Raises:
        InputError: `max_drop` without a metric, and no output is of floating point.
    """
    if request.max_drop is None or request.evaluate is not None:
        return
    outputs = [value for value in walk.output_values(program) if walk.is_tensor(value)]
    if not any(walk.value(value).is_floating_point() for value in outputs):
        raise InputError(
            "max_drop bounds the error of floating-point outputs where there is no metric, and all outputs "
            "are integers",
            hint="pass evaluate=, a metric of the model",
        )


def refuse_rework(request: Request, program: Program) -> None:
    """Refuse to prune or to quantize a model that came quantized.

    Raises:
        InputError: the request asks for either, and the program carries fake quantization.
    """
    recipe = request.recipe
    if any(step is not None for step in (request.prune, recipe.depth, recipe.sparsify)):
        refuse_removal(program)
    if request.quantize is not None:
        refuse_requantization(program)


def refuse_idle_patterns(request: Request, programs: Iterable[Program]) -> None:
    """Refuse patterns of what stays in float that match nothing: most likely they are misspelt.

    Raises:
        InputError: a pattern matches no operator, module or parameter of any of the programs.
    """
    patterns = () if request.quantize is None else request.quantize.exclude
    if not patterns:
        return
    names: set[str] = set()
    for program in programs:
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        names |= {name for node in calls for name in (node.name, walk.module_path(node))}
        names |= {str(node.target) for node in walk.tensor_nodes(program)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"the pattern {pattern!r} of what stays in float matches no operator, module or parameter",
                hint=_close(pattern, names),
            )


def _close(pattern: str, names: set[str]) -> str:
    close = difflib.get_close_matches(pattern.rstrip("*."), sorted(names), 2, 0.5)
    did = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{did}`fxcompress inspect` lists the names"


def refuse_unbuilt(recover: object) -> None:
    """Refuse the keywords whose layers are not built yet."""
    if recover is not None:
        raise NotSupported(
            "recover= (fine-tuning, distillation) is not built",
            hint="train result.trainable.module with your own loop, then optimize(result.trainable, ...)",
        )


def program_of(model: Model, example_inputs: Any, dynamic_shapes: Any, *, trust: bool = False) -> Program:
    """Return the captured program of whatever the caller passed as the model; the model is left as it is.

    Raises:
        InputError: a file that is neither `.pt2` nor `.fxc`, a program in training mode, or example inputs
            for a program that was captured with its own.
    """
    if not isinstance(model, Program) and not _is_archive(model):
        return capture(model, example_inputs, dynamic_shapes=dynamic_shapes, trust=trust)
    if example_inputs is not None or dynamic_shapes is not None:
        raise InputError(
            "a captured program has its own example inputs and dynamic shapes",
            hint="leave example_inputs and dynamic_shapes out, or pass the model itself",
        )
    program = model.copy() if isinstance(model, Program) else load(Path(model))
    if program.training:
        raise InputError("the program is in training mode", hint="call program.eval() first")
    return program


def _is_archive(model: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(model, str | os.PathLike) and Path(model).suffix.lower() == ".fxc"


def _number(value: object) -> float | None:
    """The number that a value is or holds; None for flags, texts and what holds several."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        return None
    return float(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""The stages that a compression is made of, in the order they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from fxcompress.errors import InputError
from fxcompress.passes.fold_parameters import FoldParameters
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.remove_identities import RemoveIdentities
from fxcompress.pipeline import Stage
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import Quantize
from fxcompress.recipes.writing import toml_of

LOSSLESS: tuple[Stage, ...] = (
    RemoveIdentities(),  # first: a dropout between a linear and its batch norm would hide the pair
    FoldParameters(),  # then: a batch norm folds into a stored weight, not into a computed one (weight norm)
    FuseBatchNorm(),
)
"""What every deployed program goes through; it computes what it did before, up to rounding."""

Step: TypeAlias = Stage | Prune | PruningPlan | Quantize
"""A stage of a recipe: a pass, the options of a decision that a pass then carries out, or its outcome."""

_DECISIONS = (Prune, PruningPlan, Quantize)

VOCABULARY: Mapping[str, type[Any]] = {
    "prune": Prune,
    "remove-identities": RemoveIdentities,
    "fold-parameters": FoldParameters,
    "fuse-batch-norm": FuseBatchNorm,
    "quantize": Quantize,
}
"""By their spelling in a recipe, the stages; their fields are those of the dataclass."""

_USERS_NAMES = "a pruning plan is stated in the parameters of your model, which {} replaces"
_INTEGERS = "after quantize the weights are integers, which {} cannot edit"


class Fault(NamedTuple):
    """What is wrong with the order of stages: the place of the one to move, why, and where to."""

    place: int
    message: str
    hint: str


@dataclass(frozen=True)
class Recipe:
    """Stages in the order they run.

    Args:
        steps: passes, and the options of pruning and quantization in their places.
        description: one line for a reader.

    Raises:
        InputError: an order in which a stage could not do its work.
    """

    steps: tuple[Step, ...] = LOSSLESS
    description: str = ""

    def __post_init__(self) -> None:
        known = {*VOCABULARY.values(), PruningPlan}
        unknown = [step for step in self.steps if type(step) not in known]
        if unknown:
            raise InputError(
                f"{unknown[0]!r} is no stage of a recipe", hint=f"stages are: {', '.join(VOCABULARY)}"
            )
        fault = order_fault(self.steps)
        if fault is not None:
            raise InputError(fault.message, hint=fault.hint)

    @property
    def prune(self) -> Prune | None:
        """How the recipe prunes, if it does."""
        return next((step for step in self.steps if isinstance(step, Prune)), None)

    @property
    def plan(self) -> PruningPlan | None:
        """The pruning plan that the recipe applies, if it was made before."""
        return next((step for step in self.steps if isinstance(step, PruningPlan)), None)

    @property
    def quantize(self) -> Quantize | None:
        """How the recipe quantizes, if it does."""
        return next((step for step in self.steps if isinstance(step, Quantize)), None)

    @property
    def before(self) -> tuple[Stage, ...]:
        """The passes that run before pruning; none where nothing is pruned."""
        pruned = next((i for i, step in enumerate(self.steps) if isinstance(step, Prune | PruningPlan)), 0)
        return tuple(step for step in self.steps[:pruned] if not isinstance(step, _DECISIONS))

    @property
    def after(self) -> tuple[Stage, ...]:
        """The passes that run after pruning, which is before quantization."""
        passes = [step for step in self.steps if not isinstance(step, _DECISIONS)]
        return tuple(passes[len(self.before) :])

    def to_toml(self) -> str:
        """The file that `load_recipe` reads back as an equal recipe.

        Raises:
            InputError: a field holds a function or a type, or a stage is a plan, which a file cannot spell.
        """
        if self.plan is not None:
            raise InputError(
                "a recipe file cannot spell a pruning plan",
                hint="save it by itself: plan.save(path), then --plan or PruningPlan.load(path)",
            )
        return toml_of(self.description, [(spelling(step), step) for step in self.steps])

    def __str__(self) -> str:
        return " -> ".join(spelling(step) for step in self.steps) or "nothing"


def recipe_of(prune: Prune | PruningPlan | None, quantize: Quantize | None) -> Recipe:
    """The recipe that the keywords `prune` and `quantize` stand for."""
    first: tuple[Step, ...] = () if prune is None else (prune,)
    last: tuple[Step, ...] = () if quantize is None else (quantize,)
    return Recipe((*first, *LOSSLESS, *last))


def spelling(step: Step) -> str:
    """What a recipe file calls a stage."""
    kind = Prune if isinstance(step, PruningPlan) else type(step)
    return next(name for name, known in VOCABULARY.items() if known is kind)


def order_fault(steps: Sequence[Step]) -> Fault | None:
    """The first stage that could not do its work where it stands."""
    seen: list[str] = []
    for index, step in enumerate(steps):
        name = spelling(step)
        if name in ("prune", "quantize") and name in seen:
            hint = "run optimize again on result.trainable" if name == "prune" else "leave the second one out"
            return Fault(index, f"a recipe has one {name}, this is the second", hint)
        if "quantize" in seen:
            return Fault(index, _INTEGERS.format(name), f"put {name} before quantize")
        if name == "prune":
            early = next((item for item in seen if item in ("fold-parameters", "fuse-batch-norm")), None)
            if early is not None:
                return Fault(index, _USERS_NAMES.format(early), f"put prune before {early}")
        seen.append(name)
    return None

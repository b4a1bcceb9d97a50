"""The stages that a compression is made of, in the order they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from fxcompress.errors import InputError
from fxcompress.passes.cancel_layout import CancelLayout
from fxcompress.passes.drop_masks import DropMasks
from fxcompress.passes.fold_parameters import FoldParameters
from fxcompress.passes.fuse_affine import FuseAffine
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.fuse_input_normalization import FuseInputNormalization
from fxcompress.passes.fuse_padding import FusePadding
from fxcompress.passes.merge_branches import MergeBranches
from fxcompress.passes.merge_linears import MergeLinears
from fxcompress.passes.recognize_activations import RecognizeActivations
from fxcompress.passes.remove_duplicates import RemoveDuplicates
from fxcompress.passes.remove_identities import RemoveIdentities
from fxcompress.pipeline import Stage
from fxcompress.plan.depth import Depth
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import Quantize
from fxcompress.plan.sparsity import Sparsify
from fxcompress.recipes.writing import toml_of

LOSSLESS: tuple[Stage, ...] = (
    RemoveIdentities(),  # first: a dropout between a linear and its batch norm would hide the pair
    FoldParameters(),  # then: a batch norm folds into a stored weight, not into a computed one (weight norm)
    DropMasks(),
    RecognizeActivations(),  # before what would fold the shift of one into the operator before it
    CancelLayout(),  # a layout that is undone would stand between an operator and what folds into it
    FuseBatchNorm(),
    FuseInputNormalization(),  # a whole normalisation at once; FuseAffine takes what can go alone
    FuseAffine(),
    FusePadding(),  # after the shifts, which a convolution takes only while it does not pad
    MergeBranches(),  # now each branch is one operator
    MergeLinears(),
    RemoveDuplicates(),  # last: what is read twice folds into nothing
)
"""What every deployed program goes through; it computes what it did before, up to rounding."""

Step: TypeAlias = Stage | Depth | Prune | PruningPlan | Sparsify | Quantize
"""A stage of a recipe: a pass, the options of a decision that a pass then carries out, or its outcome."""

_THINNING = (Depth, Prune, PruningPlan, Sparsify)
_DECISIONS = (*_THINNING, Quantize)

VOCABULARY: Mapping[str, type[Any]] = {
    "depth": Depth,
    "prune": Prune,
    "sparsify": Sparsify,
    "remove-identities": RemoveIdentities,
    "fold-parameters": FoldParameters,
    "drop-masks": DropMasks,
    "recognize-activations": RecognizeActivations,
    "cancel-layout": CancelLayout,
    "fuse-batch-norm": FuseBatchNorm,
    "fuse-input-normalization": FuseInputNormalization,
    "fuse-affine": FuseAffine,
    "fuse-padding": FusePadding,
    "merge-branches": MergeBranches,
    "merge-linears": MergeLinears,
    "remove-duplicates": RemoveDuplicates,
    "quantize": Quantize,
}
"""By their spelling in a recipe, the stages; their fields are those of the dataclass."""

_USERS_NAMES = "{} is planned in the parameters of your model, which {} replaces"
_REPLACING = frozenset(
    {
        "fold-parameters",
        "fuse-batch-norm",
        "fuse-input-normalization",
        "fuse-affine",
        "merge-branches",
        "merge-linears",
    }
)
"""Passes after which parameters are no longer the user's."""

_THIN_ORDER = ("depth", "prune", "sparsify")
"""One after the other: blocks that go need no pruning, channels that go need no masks."""
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
    def depth(self) -> Depth | None:
        """How the recipe leaves out residual blocks, if it does."""
        return next((step for step in self.steps if isinstance(step, Depth)), None)

    @property
    def sparsify(self) -> Sparsify | None:
        """How the recipe zeroes single weights, if it does."""
        return next((step for step in self.steps if isinstance(step, Sparsify)), None)

    @property
    def quantize(self) -> Quantize | None:
        """How the recipe quantizes, if it does."""
        return next((step for step in self.steps if isinstance(step, Quantize)), None)

    @property
    def before(self) -> tuple[Stage, ...]:
        """The passes that run before blocks, channels or weights go; none where nothing goes."""
        first = next((i for i, step in enumerate(self.steps) if isinstance(step, _THINNING)), 0)
        return tuple(step for step in self.steps[:first] if not isinstance(step, _DECISIONS))

    @property
    def after(self) -> tuple[Stage, ...]:
        """The passes that run after that, which is before quantization."""
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
        if name in (*_THIN_ORDER, "quantize") and name in seen:
            again = name != "quantize"
            hint = "run optimize again on result.trainable" if again else "leave the second one out"
            return Fault(index, f"a recipe has one {name}, this is the second", hint)
        if "quantize" in seen:
            return Fault(index, _INTEGERS.format(name), f"put {name} before quantize")
        if name in _THIN_ORDER and (fault := _thinning_fault(index, name, seen)):
            return fault
        seen.append(name)
    return None


def _thinning_fault(index: int, name: str, seen: Sequence[str]) -> Fault | None:
    """Why blocks, channels or weights cannot be chosen after these stages."""
    early = next((item for item in seen if item in _REPLACING), None)
    if early is not None:
        return Fault(index, _USERS_NAMES.format(name, early), f"put {name} before {early}")
    others = [item for item in seen if item in _THIN_ORDER]
    late = next((item for item in others if _THIN_ORDER.index(item) > _THIN_ORDER.index(name)), None)
    if late is not None:
        return Fault(
            index, f"{name} after {late} would undo or repeat its choice", f"put {name} before {late}"
        )
    if others and seen[-1] not in _THIN_ORDER:
        return Fault(index, f"{name} follows {others[-1]} directly", f"put {seen[-1]} after {name}")
    return None

"""Pruning in rounds, with training in between.

Each round analyses the program as it is, decides by its weights as they are, removes, proves the removal,
and hands the program to the caller's training step. What is asked for is always counted from the original
program: `Prune(ratio=0.5)` in five rounds ends at half of the original's MACs, and `max_ratio` is a share of
each group's first width. All rounds together are one plan in the original's names and coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fxcompress.analysis.cost import Cost
from fxcompress.analysis.evidence import Evidence, gather, needs_of
from fxcompress.analysis.groups import Analysis, Group, analyse
from fxcompress.errors import CompressError, InputError, NotSupported, first_line
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.compensate import Compensate
from fxcompress.passes.loosening import LOOSEN
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.composition import Composition
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import Choices, choose_from, plan_pruning
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantized_models import refuse_removal
from fxcompress.plan.schedule import Schedule
from fxcompress.proof.comparison import Equivalence
from fxcompress.proof.determinism import refuse_random
from fxcompress.proof.masked import masked_equivalence
from fxcompress.targets.catalog import resolve
from fxcompress.targets.target import Target


@dataclass(frozen=True)
class Round:
    """What one round did, before its training.

    Args:
        number: from 1.
        rounds: how many there are.
        plan: what was removed, in the names of the program and the coordinates this round began with; None
            where the schedule removes nothing.
        cost: of the program after the removal.
        remaining: its MACs as a share of the original's.
        proof: of the removal; None where there was none.
    """

    number: int
    rounds: int
    plan: PruningPlan | None
    cost: Cost
    remaining: float
    proof: Equivalence | None


@dataclass(frozen=True)
class Gradual:
    """What pruning in rounds gives.

    Args:
        program: pruned and trained, in evaluation mode; hand it to `optimize` to fold, lower and measure.
        plan: everything that was removed, as one plan of the original.
        rounds: what happened in each.
    """

    program: Program
    plan: PruningPlan
    rounds: tuple[Round, ...]

    @property
    def history(self) -> tuple[float, ...]:
        """The share of the original's MACs that remained after each round."""
        return tuple(item.remaining for item in self.rounds)


Train = Callable[[Program, Round], None]


def prune_gradually(  # noqa: PLR0913
    model: nn.Module | Program,
    example_inputs: Any = None,
    *,
    prune: float | Prune = 0.5,
    schedule: Schedule | None = None,
    train: Train | None = None,
    calibration: Iterable[Any] | None = None,
    target: str | Target = "onnxruntime",
) -> Gradual:
    """Remove channels in rounds and train in between; the model given stays as it is.

    Args:
        model: a module, or a program in evaluation mode.
        example_inputs: as `capture` takes them; leave out for a program.
        prune: what is gone in the end; bounds in milliseconds are not built here.
        schedule: how much is gone after each round; cubic in 5 rounds by default.
        train: `train(program, round)` trains for one round: the program is in training mode,
            `program.module.parameters()` goes to an optimizer made anew (tensors have new shapes), and
            `program(x)` gives the outputs. It is called after the last round too. Packed linears whose parts
            shrink apart (query, key, value) are one again after the last round only.
        calibration: batches for saliencies that read data, and for compensation after each removal (unless
            `Prune(compensate=False)`); read once or more per round.
        target: whose channel block widths are aligned to.

    Raises:
        InputError, BudgetError: what is asked for does not fit the model, as in `optimize`.
        NotSupported: a budget in milliseconds, or a model that draws random numbers in evaluation mode.
        ProofError: a removal is not what its plan says.
    """
    options = prune if isinstance(prune, Prune) else Prune(ratio=prune)
    _refuse(options, calibration)
    steps = schedule or Schedule()
    program = model if isinstance(model, Program) else capture(model, example_inputs)
    if program.training:
        raise InputError("the program is in training mode", hint="call program.eval() first")
    refuse_random(program)
    refuse_removal(program)
    program = Journal().apply_all(LOOSEN, program.copy(share=False))
    course = _Course(analyse(program), options, steps, resolve(target).channel_block, calibration)
    rounds: list[Round] = []
    for number in range(1, steps.rounds + 1):
        program, done = course.removed(program, number)
        rounds.append(done)
        if train is not None:
            _trained(train, program, done)
    packed = Journal().apply(PackLinears(), program)
    return Gradual(packed, course.composed(), tuple(rounds))


def _trained(train: Train, program: Program, done: Round) -> None:
    try:
        train(program.train(), done)
    except CompressError as error:
        raise error.note(f"in the training of round {done.number}") from error.__cause__
    except Exception as error:
        raise InputError(
            f"train failed in round {done.number} of {done.rounds}: {type(error).__name__}: "
            f"{first_line(error)}",
            hint="train(program, round) is called once per round; parameters have new shapes each time",
        ) from error
    program.eval()


def _refuse(options: Prune, calibration: Iterable[Any] | None) -> None:
    """Raise where the options ask for what rounds cannot give."""
    if options.budget is not None and options.budget.ms is not None:
        raise NotSupported(
            "a budget in milliseconds is not built for pruning in rounds",
            hint="bound macs, params or bytes; or optimize(prune=Prune(budget=Budget(ms=...))) in one shot",
        )
    if calibration is None and (options.compensate or needs_of(options.criterion)):
        what = "compensate=True" if options.compensate else f"saliency {options.criterion.kind!r}"
        raise InputError(f"{what} needs calibration data", hint="pass calibration=[batch, ...]")
    if isinstance(calibration, Iterator):
        raise InputError(
            "the calibration data can be read only once, and every round reads it",
            hint="pass a list of batches or a DataLoader, which can be read more than once",
        )


class _Course:
    """The rounds so far: what was asked of the original, and what is left of it."""

    def __init__(
        self,
        base: Analysis,
        options: Prune,
        steps: Schedule,
        block: int,
        calibration: Iterable[Any] | None,
    ) -> None:
        self.base, self.options, self.steps, self.block = base, options, steps, block
        self.calibration = calibration
        self.full = base.price.at({})
        self.choices: Choices = choose_from(base, options, block, self._evidence(base))
        self.composition = Composition.start(base)

    def removed(self, program: Program, number: int) -> tuple[Program, Round]:
        """The program after the removal of one round, compensated where there is data."""
        if self._idle(number):
            cost = analyse(program).price.at({})
            return program, Round(number, self.steps.rounds, None, cost, self._share(cost), None)
        analysis = analyse(program)
        plan = plan_pruning(
            analysis,
            self._options(analysis, number),
            self.block,
            evidence=self._evidence(analysis),
            within=self._limits(analysis, number),
        )
        pruned = Journal().apply(PruneChannels(plan), program)
        proof = masked_equivalence(program, pruned, plan) if plan.channels else None
        self.composition = self.composition.after(analysis, plan)
        self.composed()
        if self.calibration is not None and self.options.compensate is not False and plan.channels:
            pruned = Journal().apply(Compensate(program, plan, self.calibration), pruned)
        return pruned, Round(number, self.steps.rounds, plan, plan.after, self._share(plan.after), proof)

    def composed(self) -> PruningPlan:
        """Everything removed so far, as a plan of the original; raises ProofError where there is none."""
        plan = self.composition.plan(self.choices.protected, {})
        steps = {item.name: item.step for item in self.choices.candidates}
        widths = {name: len(stay) for name, stay in plan.channels.items() if name in steps}
        relaxed = {name: _rung(width) for name, width in widths.items() if width % steps[name]}
        return replace(plan, relaxed={**self._fixed_by_hand(plan), **relaxed})

    def _fixed_by_hand(self, plan: PruningPlan) -> dict[str, int]:
        return {name: step for name, step in self.choices.relaxed.items() if name in plan.channels}

    def _share(self, cost: Cost) -> float:
        return cost.macs / self.full.macs if self.full.macs else 1.0

    def _idle(self, number: int) -> bool:
        """Whether the schedule removes nothing in this round, whatever the share."""
        return self.steps.removed(number, 0.5) == self.steps.removed(number - 1, 0.5)

    def _evidence(self, analysis: Analysis) -> Evidence | None:
        needs = needs_of(self.options.criterion)
        if not needs or self.calibration is None:
            return None
        return gather(analysis.program, self.calibration, needs, self.options.loss)

    def _options(self, analysis: Analysis, number: int) -> Prune:
        """The options of one round: bounds in absolute terms, and the protection that the original had."""
        names = self._names(analysis)
        kept = {group for group, first in names.items() if first in self.choices.protected}

        def protected_in_the_original(group: Group) -> bool:
            return group.name in kept

        return replace(
            self.options,
            ratio=None,
            budget=self._budget(number),
            ratios={},
            min_ratio=0.0,
            protect=(protected_in_the_original,),
            protect_embeddings=False,
            factors="both",
        )

    def _budget(self, number: int) -> Budget:
        """What may remain after this round, in absolute terms; all MACs where only explicit shares go."""
        limits: dict[str, float] = {}
        for name in ("macs", "params", "bytes"):
            full = float(getattr(self.full, name))
            stated = [] if self.options.budget is None else [self.options.budget.limit(name, full)]
            if name == "macs" and self.options.ratio is not None:
                stated.append(full * (1 - self.options.ratio))
            known = [limit for limit in stated if limit is not None]
            if known:
                share = max(0.0, 1 - min(known) / full)
                limits[name] = full * (1 - self.steps.removed(number, share))
        return Budget(**(limits or {"macs": self.full.macs}))

    def _names(self, analysis: Analysis) -> dict[str, str]:
        """By name of a group as it is now, the name of the original's group that it is left of."""
        origins = {group.name: self.composition.origin(group) for group in analysis.groups}
        return {name: found.name for name, found in origins.items() if found is not None}

    def _limits(self, analysis: Analysis, number: int) -> dict[str, tuple[int, int]]:
        """By group, the least and most width of this round, from those of the original."""
        candidates = {item.name: item for item in self.choices.candidates}
        names = self._names(analysis)
        limits: dict[str, tuple[int, int]] = {}
        for group in analysis.groups:
            first = names.get(group.name, "")
            if first in self.choices.fixed:
                wanted = self._on_the_way(self.base.group(first).size, self.choices.fixed[first], number)
                limits[group.name] = (min(wanted, group.size),) * 2
            elif first in candidates:
                item = candidates[first]
                most = min(group.size, self._on_the_way(item.size, item.top, number))
                limits[group.name] = (min(item.least, most), most)
        return limits

    def _on_the_way(self, size: int, last: int, number: int) -> int:
        """The width of this round, for a group that is to go from `size` to `last`."""
        return max(last, round(size * (1 - self.steps.removed(number, 1 - last / size))))


def _rung(width: int) -> int:
    """The coarsest of the alignments 8, 4, 1 that a width is a multiple of."""
    return next(step for step in (8, 4, 1) if width % step == 0)

"""From the captured program to those that are candidates for deployment: decide, edit, prove the removal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from fxcompress.analysis.cost import unpriced
from fxcompress.analysis.density import patterns
from fxcompress.analysis.evidence import Evidence, gather, needs_of
from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.analysis.saliency import unspoken
from fxcompress.api.carried import carried_notes, carried_plan, settled
from fxcompress.api.compensation import compensated
from fxcompress.api.latency import plan_removal
from fxcompress.api.quantizing import Calibration, quantized
from fxcompress.api.request import Request, refuse_idle_patterns
from fxcompress.api.thinning import shortened, sparsified
from fxcompress.api.variant import Batch, Quantized, Tradeoff, Variant
from fxcompress.errors import InputError
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.measure import batch_symbol
from fxcompress.numerics.saliency import Saliency
from fxcompress.passes.loosening import LOOSEN, loosened, rewriting
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization_plan import QuantizationPlan
from fxcompress.proof.comparison import TOLERANCE, Equivalence
from fxcompress.proof.determinism import refuse_random
from fxcompress.proof.masked import masked_equivalence
from fxcompress.report.report import LatencyBudget, Proof

SAMPLES = 16
"""Calibration samples, beside the example, on which outputs are compared."""


@dataclass(frozen=True)
class Compressed:
    """The programs on the way, and the decisions between them.

    `analysis` is of what pruning works on, the original with its over-tied widths loosened. `trainable` is
    the original itself where nothing is pruned, `deployed` is folded, `quantized` is what was made
    of it in fewer bits. `carried` is the quantization that the model
    came with.
    """

    original: Program
    analysis: Analysis
    trainable: Program
    deployed: Program
    quantized: Quantized
    pruning: PruningPlan | None
    samples: tuple[Batch, ...]
    proofs: tuple[Proof, ...]
    notes: tuple[str, ...]
    latency_budget: LatencyBudget | None = None
    carried: QuantizationPlan | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The programs in fewer bits."""
        return self.quantized.variants

    @property
    def frontier(self) -> tuple[Tradeoff, ...]:
        """What can be made beside them, from the fastest to the most accurate."""
        return self.quantized.frontier

    def variant(self, name: str) -> Variant | None:
        """The variant of that name, None for the original and the float program."""
        return next((item for item in self.variants if item.name == name), None)

    def plan_of(self, name: str) -> QuantizationPlan | None:
        """The precision of a candidate's operators: as planned, or as the model came with it."""
        variant = self.variant(name)
        return self.carried if variant is None else variant.plan


@dataclass(frozen=True)
class _Pruned:
    """The program after pruning, the analysis that decided, and what there is to say of it."""

    program: Program
    analysis: Analysis
    plan: PruningPlan | None = None
    proofs: tuple[Proof, ...] = ()
    notes: tuple[str, ...] = ()
    latency: LatencyBudget | None = None


def compress(request: Request, original: Program, journal: Journal) -> Compressed:
    """Prune, fold and quantize as the request asks; the original stays as it is."""
    refuse_random(original)
    samples, calibration = _samples(original, request.calibration)
    start = journal.apply_all(request.recipe.before, original)
    shorter, proofs, left_out = shortened(request, start, journal)
    pruned = _pruned(request, shorter, journal)
    trainable, zeroed = sparsified(request, pruned.program, journal)
    deployed = journal.apply_all(request.recipe.after, trainable)
    refuse_idle_patterns(request, (original, deployed))
    made = quantized(request, deployed, calibration, journal)
    nothing = request.quantize is not None and not made.variants
    carried = carried_plan(deployed, request.target)
    if carried is not None:
        deployed = settled(deployed, carried, request.target, journal)
    notes = (*left_out, *pruned.notes, *zeroed, *_uncounted(original), *_notes(pruned.plan, nothing))
    return Compressed(
        original,
        pruned.analysis,
        trainable,
        deployed,
        made,
        pruned.plan,
        samples,
        (*proofs, *pruned.proofs),
        (*notes, *carried_notes(carried)),
        pruned.latency,
        carried,
    )


def _pruned(request: Request, start: Program, journal: Journal) -> _Pruned:
    """Loosen, analyse and, where asked for, decide, remove, prove and compensate."""
    if request.prune is None:
        with journal.step("analyse"):
            return _Pruned(start, analyse(loosened(start)))
    rewrites = LOOSEN if request.plan is None else rewriting(request.plan.rewrites)
    loose = journal.apply_all(rewrites, start)
    with journal.step("analyse"):
        analysis = analyse(loose)
    evidence = _evidence(request, analysis, journal)
    removal = plan_removal(request, request.prune, start, analysis, evidence, journal)
    plan = removal.plan
    remarks = _ranked_otherwise(analysis, request.prune.criterion, plan)
    removed = journal.apply(PruneChannels(plan), loose)
    with journal.step("prove-pruning"):
        proof = _masked(start, removed, plan)
    refitted, found, corrected = compensated(request, loose, removed, plan, journal)
    packed = journal.apply(PackLinears(), refitted)
    notes = (*removal.notes, *remarks, *corrected, *_patterns_lost(start, packed))
    return _Pruned(packed, analysis, plan, (proof, *found), notes, removal.latency)


def _evidence(request: Request, analysis: Analysis, journal: Journal) -> Evidence | None:
    """What the saliency needs beside the weights; the calibration data is read for it, and again later."""
    if request.prune is None or request.calibration is None:
        return None
    needs = needs_of(request.prune.criterion)
    if not needs:
        return None
    if isinstance(request.calibration, Iterator):
        raise InputError(
            f"saliency {request.prune.criterion.kind!r} reads the calibration data before it is needed again",
            hint="pass a list of batches or a DataLoader, which can be read more than once",
        )
    with journal.step("gather-evidence"):
        return gather(analysis.program, request.calibration, needs, request.prune.loss)


def _ranked_otherwise(analysis: Analysis, saliency: Saliency, plan: PruningPlan) -> tuple[str, ...]:
    """A note where the saliency says nothing about a group that was pruned."""
    names = [name for name in unspoken(analysis, saliency) if name in plan.channels]
    if not names:
        return ()
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (f"{saliency.kind} says nothing about {', '.join(names[:4])}{more}: ranked by l2 instead",)


def _patterns_lost(before: Program, after: Program) -> tuple[str, ...]:
    """A note where the removal of channels leaves more than N of M weights that are not zero."""
    had, has = patterns(before), patterns(after)
    lost = [
        name
        for name, (most, group) in had.items()
        if name not in has or has[name][1] != group or has[name][0] > most
    ]
    if not lost:
        return ()
    kinds = ", ".join(dict.fromkeys("{}:{}".format(*had[name]) for name in lost))
    more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
    return (
        f"removing channels breaks the {kinds} pattern of zeros of {', '.join(lost[:4])}{more}: "
        "zero weights after channels are removed (one recipe with prune and sparsify)",
    )


def _masked(original: Program, pruned: Program, plan: PruningPlan) -> Proof:
    found = masked_equivalence(original, pruned, plan)
    error = max(found.output_error, found.difference_error)
    detail = "float64, against the original with channels switched off; "
    if not plan.channels:
        detail = "float64, against the original: nothing was removed; "
    if found.response > 0.0:
        detail += f"outputs differ by {found.response:.2g} between inputs"
    else:
        detail += "no other input that was tried moved the outputs: compared on the example alone"
    detail += _switched_off(found)
    return Proof("masked-equivalence", error, TOLERANCE, detail)


def _switched_off(found: Equivalence) -> str:
    """What is to be said of parts that zeros or dead activations switch off."""
    said = ""
    if found.woken:
        said += f"; again with other numbers in place of {found.woken} parameters of zeros"
    if found.asleep:
        said += f"; {found.asleep} parameters stay zero: what they switch off is compared in shape alone"
    if found.unheard:
        more = f" and {len(found.unheard) - 3} more" if len(found.unheard) > 3 else ""
        said += f"; no output answers to {', '.join(found.unheard[:3])}{more}: compared in shape alone"
    return said


def _samples(
    program: Program, calibration: Iterable[Any] | None
) -> tuple[tuple[Batch, ...], Calibration | None]:
    """Return up to `SAMPLES` samples of the calibration data as flat inputs, and data that is still whole.

    What can be read only once is put together again from what was taken and what is left.
    """
    if calibration is None:
        return (), None
    if not isinstance(calibration, Iterator):
        taken = tuple(_taken(program, flat_batches(program, calibration)))
        return taken, Calibration(calibration, calibration)
    held: list[Any] = []
    flat = flat_batches(program, _recorded(calibration, held))
    return tuple(_taken(program, flat)), Calibration(chain(held, calibration), held)


def _recorded(batches: Iterator[Any], held: list[Any]) -> Iterator[Any]:
    for batch in batches:
        held.append(batch)
        yield batch


def _taken(program: Program, batches: Iterable[Batch]) -> Iterator[Batch]:
    symbol = batch_symbol(program)
    left = SAMPLES
    for batch in batches:
        size = batch[0].shape[0] if batch[0].dim() else 1
        if symbol is not None and size > left:
            batch, size = leading(program, batch, left), left
        yield batch
        left -= size
        if left <= 0:
            return


def leading(program: Program, batch: Batch, count: int) -> Batch:
    """Return the first samples of a batch of flat inputs, or all of it where the batch is static."""
    symbol = batch_symbol(program)
    counted = [program.signature.dynamic.get(name, {}).get(0) for name in program.signature.inputs]
    return [
        value[:count] if symbol is not None and mark == symbol else value
        for value, mark in zip(batch, counted, strict=True)
    ]


def _uncounted(program: Program) -> tuple[str, ...]:
    """A note where the work of an operator is unknown, for then the MACs of the report are too low."""
    nodes = unpriced(program)
    if not nodes:
        return ()
    names = ", ".join(f"{node.name} ({node.target})" for node in nodes[:4])
    more = f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""
    return (f"the MACs leave out operators whose work is not known: {names}{more}",)


def _notes(pruning: PruningPlan | None, nothing: bool) -> tuple[str, ...]:
    """What to say of the plans; `nothing`: quantization was asked for and had nothing to do."""
    notes = []
    if pruning is not None and pruning.relaxed:
        notes.append(
            f"{len(pruning.relaxed)} of {len(pruning.channels)} pruned groups have widths off the target's "
            f"channel block, to meet the budget: {', '.join(sorted(pruning.relaxed)[:4])}"
        )
    if nothing:
        notes.append("no operator of this model has an integer kernel on the target: it stays in float")
    return tuple(notes)

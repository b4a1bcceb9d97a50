"""Make up for removed channels without training: re-fit what remains so that layers give what they gave.

    conv(x', W)  =>  conv(x', W + dW) + db    with the least |conv(x, W0) - conv(x', W + dW) - db|^2

where x, W0 are the original's input and weight, x' what the pruned program (already corrected before this
layer) hands over. Layers are visited in graph order; each is a ridge regression of what its output lacks on
its inputs (`numerics.least_squares`). The damping is chosen per output channel on samples that no fit sees,
and a channel that is not better off on them stays as it is. The error of the whole model is that of samples
of a third kind, which chose nothing, where there are enough (`gram.ENOUGH`). Where a layer's output enters a
sum (a residual stream), what the *sum* lacks is fitted, so that errors of earlier blocks are made up for too.
A layer without a bias before a batch norm corrects through the running mean; nothing is added to the graph.
Weights that are zero stay zero: training leaves none (not one in the four networks of the benchmarks), so
they are somebody's mask or switch.

The asymmetric target and that of residual sums are He et al., "Channel Pruning for Accelerating Very Deep
Neural Networks" (2017); Luo et al., "ThiNet" (2017), re-fit the kept channels likewise. No labels are read.
This is our answer to Torch-Pruning's issues #147, #87 and #296: accuracy near zero after pruning, and no
recovery.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fxcompress.analysis.gram import SideBySide
from fxcompress.analysis.groups import analyse
from fxcompress.analysis.refit import Site, sites
from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.least_squares import Fit, Moments, best_fit
from fxcompress.passes.contract import NOTHING_TO_JUDGE_BY, Decline, Outcome, worse
from fxcompress.passes.loosening import loosened
from fxcompress.plan.pruning_plan import PruningPlan

DAMPINGS = (1e-4, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, float("inf"))
"""Penalties on a change that are tried, relative to the mean square of an input; infinite: the bias alone."""

COARSE = (3e-3, 3e-2, 3e-1, float("inf"))
"""What is tried instead from `WIDE` unknowns on, where each Cholesky factor takes a tenth of a second and
more: half of the time of a whole ResNet-50 went into them."""

WIDE = 768

MEMORY = 512 * 2**20
"""Bytes of activations that may be held; samples beyond that are not read."""


@dataclass(frozen=True)
class Compensated(Outcome):
    """What compensation did, and the error of the outputs on samples that no fit saw.

    Args:
        before, after: squared difference to the original's outputs, as a share of their variance over all
            samples read. An outlier among those makes both small: compare the two.
        used: samples read.
        judged: how many of them were kept back to choose dampings and corrections by.
        reported: of how many `before` and `after` are the error.
        apart: whether those are others than the ones that chose; where they are the same, for there are few
            samples, the error is optimistic.
    """

    before: float = 0.0
    after: float = 0.0
    used: int = 0
    judged: int = 0
    reported: int = 0
    apart: bool = False


@dataclass(frozen=True)
class Compensate:
    """Re-fit the layers of a pruned program to what the original computes on calibration data.

    Args:
        original: the program that was pruned.
        plan: what was removed from it.
        batches: calibration data that can be read more than once; labels are ignored.
        memory: bytes of activations that may be held at once.
    """

    original: Program
    plan: PruningPlan
    batches: Iterable[Any] = field(repr=False)
    memory: int = MEMORY
    name: ClassVar[str] = "compensate"

    def run(self, program: Program) -> Compensated:
        """Return the corrected program, or the one given where its outputs do not come closer.

        Raises:
            InputError: unusable calibration data, or a layer that yields NaN or infinities on it.
        """
        edited = program.copy()
        original = loosened(self.original, self.plan.rewrites)
        analysis = analyse(original)
        indices = self.plan.indices(analysis)
        run = SideBySide(original, edited, analysis, indices)
        used = run.load(self.batches, self.memory)
        if not run.judged:
            return Compensated(program, (), (Decline("the outputs", NOTHING_TO_JUDGE_BY),), used=used)
        counts = used, run.judged, run.reported, run.apart
        before = run.output_error()
        found, refusals = sites(edited, analysis, indices)
        declined = [Decline(item.node.name, item.reason, walk.source(item.node)) for item in refusals]
        changed = []
        for site in found:
            line = _refit(run, site)
            if line is None:
                declined.append(Decline(site.node.name, _NO_GAIN, walk.source(site.node)))
            else:
                changed.append(line)
        run.finish()
        after = run.output_error()
        if not changed or not after < before:
            declined.append(Decline("the outputs", worse("compensation", before, after)))
            return Compensated(program, (), tuple(declined), before, before, *counts)
        edit.reinfer(edited)
        return Compensated(edited, tuple(changed), tuple(declined), before, after, *counts)


_NO_GAIN = "no correction brings it closer to the original on samples that no fit saw"


def _refit(run: SideBySide, site: Site) -> str | None:
    """Correct one layer in place; returns what it gained, None where it stays as it is."""
    run.go(site)
    fitted, judged = run.moments(site)
    if not (fitted.finite and judged.finite):
        raise InputError(
            f"{site.node.name}, or what reaches it, holds a NaN or an infinity for the calibration data",
            hint="look at the calibration data, and at the model's numerics on it",
            node=site.node.format_node(),
            source=walk.source(site.node),
        )
    dampings = COARSE if fitted.xx.shape[1] >= WIDE else DAMPINGS
    free = site.form.matrix(walk.tensor(run.pruned.program, site.form.weight).detach()) != 0
    if not bool(free.any()):
        return None  # it is switched off
    fit = best_fit(
        fitted, judged, dampings, intercept=site.bias is not None, free=None if bool(free.all()) else free
    )
    before, after = (_total(judged, made, site) for made in (None, fit))
    if not after < before:
        return None
    _write(run.pruned.program, site, fit)
    return f"{site.node.name}: {after / before:.1%} of the squared error left at {site.target.name}"


def _total(judged: Moments, fit: Fit | None, site: Site) -> float:
    """The squared error at the target, where every channel counts by its scale there."""
    errors = judged.rr if fit is None else judged.errors(fit)
    weights = site.scale.square().expand(errors.numel()).reshape(errors.shape)
    return float((weights * errors).sum())


def _write(program: Program, site: Site, fit: Fit) -> None:
    weight = walk.tensor(program, site.form.weight)
    matrix = site.form.matrix(weight.detach().double()) + fit.weight
    edit.set_tensor(program, str(site.form.weight.target), site.form.stored(matrix, weight))
    if site.bias is not None:
        bias = walk.tensor(program, site.bias)
        shifted: Tensor = bias.detach().double() + site.sign * fit.bias.reshape(-1)
        edit.set_tensor(program, str(site.bias.target), shifted.to(bias.dtype))

"""Measure the statistics of batch norms anew, on calibration data.

    batch_norm(x, running_mean, running_var)  =>  batch_norm(x, mean(x), var(x))

Removed channels shift and shrink what later norms see; with old statistics they no longer normalise. One pass
over the data, every norm fed by norms that use the batch at hand, as in training; the statistics are those of
all batches together. It needs no labels and no gradients (Li et al. 2020, "EagleEye", judge pruned networks
after this step). `Compensate` does more; this is the cheap half of it.

Whether it helps depends on what was done before: after fits to the original's pre-activations, for which the
original's statistics are right, it may do harm (78.4 instead of 80.3 % on the benchmark's ResNet-20). Given a
`reference`, the pass measures on some of the samples, compares outputs on the others, and keeps the new
statistics only where those come closer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxcompress.analysis.output_error import gap, variance
from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.graph.samples import pieces, rechunked, sample_count
from fxcompress.passes.contract import NOTHING_TO_JUDGE_BY, Decline, Outcome, worse

_NORM = torch.ops.aten.batch_norm.default

CHUNK = 64
"""Samples that run at once where a reference judges; smaller batches are joined where they are dynamic."""

MEMORY = 256 * 2**20
"""Bytes of inputs that may be held then; samples beyond that are not read."""

MOST = 1024
"""Samples that are read at most then: means of so many are known to some percent of a deviation."""

JUDGED = 4
"""Every so many-th chunk judges; the others are measured."""


@dataclass(frozen=True)
class Reestimated(Outcome):
    """What became of the statistics, and the error of the outputs on samples that were not measured.

    Args:
        before, after: squared difference to the reference's outputs, as a share of their variance.
        used: samples that were measured.
        judged: samples of which `before` and `after` are the error.
    """

    before: float = 0.0
    after: float = 0.0
    used: int = 0
    judged: int = 0


@dataclass(frozen=True)
class ReestimateBatchNorm:
    """Replace running statistics by those of calibration data; batches of some dozens of samples are best.

    Args:
        batches: calibration data; labels are ignored.
        reference: a program whose outputs are wanted. At most `MOST` samples are then read, in chunks of
            their own, held in about `MEMORY` bytes.
    """

    batches: Iterable[Any] = field(repr=False)
    reference: Program | None = field(default=None, repr=False)
    name: ClassVar[str] = "reestimate-batch-norm"

    def run(self, program: Program) -> Outcome:
        """Return a program with new statistics; raises InputError for data that gives no numbers."""
        norms, declined = _norms(program)
        if not norms:
            return Outcome(program, (), tuple(declined))
        if self.reference is None:
            return _measured(program, norms, declined, flat_batches(program, self.batches))
        return _closer(self.reference, program, norms, declined, self.batches)


def _measured(
    program: Program, norms: list[fx.Node], declined: Iterable[Decline], batches: Iterable[list[Tensor]]
) -> Outcome:
    """The program with the statistics of these batches."""
    observer = _Observer(program, norms)
    for flat in batches:
        with torch.no_grad():
            observer.run_flat(flat)
    edited, changed, left = program.copy(), [], list(declined)
    for node in norms:
        seen = observer.seen.get(node)
        if seen is None or seen.count < 2:
            left.append(Decline(node.name, "a single value per channel has no variance"))
            continue
        _require_finite(node, seen)
        for name, value in (("running_mean", seen.mean), ("running_var", seen.variance)):
            stored = walk.argument(node, name)
            dtype = walk.tensor(edited, stored).dtype
            edit.set_tensor(edited, str(stored.target), value.to(dtype))
        changed.append(f"{node.name}: statistics of {seen.count} values per channel")
    if not changed:
        return Outcome(program, (), tuple(left))
    edit.reinfer(edited)
    return Outcome(edited, tuple(changed), tuple(left))


def _closer(
    reference: Program,
    program: Program,
    norms: list[fx.Node],
    declined: list[Decline],
    batches: Iterable[Any],
) -> Outcome:
    """The same, where it brings the outputs closer to the reference's on the chunks that are not measured."""
    chunks = _chunks(program, batches)
    judged = chunks[1::JUDGED]
    if not judged:
        return Outcome(program, (), (*declined, Decline("the outputs", NOTHING_TO_JUDGE_BY)))
    fitted = [chunk for number, chunk in enumerate(chunks) if number % JUDGED != 1]
    try:
        made = _measured(program, norms, declined, fitted)
    except InputError as error:  # finite with the statistics it has: not the fault of the data
        return Outcome(program, (), (*declined, Decline("the outputs", str(error).splitlines()[0])))
    if made.program is program:
        return made
    spread = variance(run_flat(reference, flat) for flat in chunks)
    count = sum(sample_count(program, flat) for flat in judged)
    before = after = 0.0
    for flat in judged:
        wanted = run_flat(reference, flat)
        before += gap(wanted, run_flat(program, flat)) / count / (spread or 1.0)
        after += gap(wanted, run_flat(made.program, flat)) / count / (spread or 1.0)
    used = sum(sample_count(program, flat) for flat in fitted)
    if not after < before:
        refusal = Decline("the outputs", worse("a new measurement of the statistics", before, after))
        return Reestimated(program, (), (*made.declined, refusal), before, before, used, count)
    return Reestimated(made.program, made.changed, made.declined, before, after, used, count)


def _chunks(program: Program, batches: Iterable[Any]) -> list[list[Tensor]]:
    """Samples in chunks of `CHUNK`, or smaller ones where there would be too few to judge by one of them; the
    batches of a program whose batch is static as they are.
    """
    held: list[list[Tensor]] = []
    taken = size = 0
    for piece in pieces(program, batches, CHUNK):
        held.append(piece)
        taken += sample_count(program, piece)
        size += sum(value.nbytes for value in piece)
        if taken >= MOST or size >= MEMORY:
            break
    return rechunked(program, held, max(1, min(CHUNK, -(-taken // JUDGED))))


def _require_finite(node: fx.Node, seen: _Seen) -> None:
    if not (bool(seen.mean.isfinite().all()) and bool(seen.squares.isfinite().all())):
        raise InputError(
            f"the input of {node.name} holds a NaN or an infinity for the calibration data",
            hint="look at the calibration data, and at the model's numerics on it",
            node=node.format_node(),
            source=walk.source(node),
        )


@dataclass
class _Seen:
    """Count, mean and summed squared distance from it, per channel; merged as Chan et al. (1979) do."""

    count: int
    mean: Tensor
    squares: Tensor

    @property
    def variance(self) -> Tensor:
        return self.squares / (self.count - 1)

    def merge(self, other: _Seen) -> _Seen:
        total = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / total)
        between = gap.square() * (self.count * other.count / total)
        return _Seen(total, mean, self.squares + other.squares + between)


def _norms(program: Program) -> tuple[list[fx.Node], list[Decline]]:
    found, declined = [], []
    for node in program.graph.nodes:
        if node.target is not _NORM:
            continue
        stored = [walk.argument(node, name) for name in ("running_mean", "running_var")]
        if any(item is None for item in stored):
            declined.append(Decline(node.name, "it measures every batch anyway", walk.source(node)))
        elif any(item.op != "get_attr" or len(item.users) > 1 for item in stored):
            declined.append(Decline(node.name, "its statistics are computed or shared", walk.source(node)))
        else:
            found.append(node)
    return found, declined


class _Observer(Executor):
    """Runs the program with norms that use the batch at hand, and keeps what they saw."""

    def __init__(self, program: Program, norms: list[fx.Node]) -> None:
        super().__init__(program)
        self.norms = frozenset(norms)
        self.seen: dict[fx.Node, _Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Observe the input of a norm, and normalise by it where it has a variance."""
        if n not in self.norms:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x: Tensor = args[0]
        rows = x.movedim(1, 0).reshape(x.shape[1], -1).double()
        mean = rows.mean(1)
        seen = _Seen(rows.shape[1], mean, (rows - mean[:, None]).square().sum(1))
        known = self.seen.get(n)
        self.seen[n] = seen if known is None else known.merge(seen)
        if rows.shape[1] < 2:
            return super().run_node(n)
        weight, bias = args[1:3] if len(args) > 2 else (kwargs.get("weight"), kwargs.get("bias"))
        return torch.nn.functional.batch_norm(
            x, None, None, weight, bias, training=True, eps=float(walk.argument(n, "eps"))
        )

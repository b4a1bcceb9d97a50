"""Measure the statistics of batch norms anew, on calibration data.

    batch_norm(x, running_mean, running_var)  =>  batch_norm(x, mean(x), var(x))

Removed channels shift and shrink what later norms see; with old statistics they no longer normalise. One pass
over the data, every norm fed by norms that use the batch at hand, as in training; the statistics are those of
all batches together. It needs no labels and no gradients (Li et al. 2020, "EagleEye", judge pruned networks
after this step). `Compensate` does more; this is the cheap half of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.passes.contract import Decline, Outcome

_NORM = torch.ops.aten.batch_norm.default


@dataclass(frozen=True)
class ReestimateBatchNorm:
    """Replace running statistics by those of calibration data; batches of some dozens of samples are best."""

    batches: Iterable[Any] = field(repr=False)
    name: ClassVar[str] = "reestimate-batch-norm"

    def run(self, program: Program) -> Outcome:
        """Return a program with new statistics; raises InputError for data that gives no numbers."""
        norms, declined = _norms(program)
        if not norms:
            return Outcome(program, (), tuple(declined))
        observer = _Observer(program, norms)
        for flat in flat_batches(program, self.batches):
            with torch.no_grad():
                observer.run_flat(flat)
        edited = program.copy()
        changed = []
        for node in norms:
            seen = observer.seen.get(node)
            if seen is None or seen.count < 2:
                declined.append(Decline(node.name, "a single value per channel has no variance"))
                continue
            if not (bool(seen.mean.isfinite().all()) and bool(seen.squares.isfinite().all())):
                raise InputError(
                    f"the input of {node.name} holds a NaN or an infinity for the calibration data",
                    hint="look at the calibration data, and at the model's numerics on it",
                    node=node.format_node(),
                    source=walk.source(node),
                )
            for name, value in (("running_mean", seen.mean), ("running_var", seen.variance)):
                stored = walk.argument(node, name)
                dtype = walk.tensor(edited, stored).dtype
                edit.set_tensor(edited, str(stored.target), value.to(dtype))
            changed.append(f"{node.name}: statistics of {seen.count} values per channel")
        if not changed:
            return Outcome(program, (), tuple(declined))
        edit.reinfer(edited)
        return Outcome(edited, tuple(changed), tuple(declined))


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

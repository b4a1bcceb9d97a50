"""Evidence from calibration data: what saliencies need beside the weights, gathered in one streamed pass.

A *gate* `m` multiplies one position of an activation where contractions read it; `dL/dm`, the sum of `x *
dL/dx` over everything but the sample, says how the loss of a sample answers when the position is switched
off. By the chain rule it equals the sum of `g * w` over the consumers' slices of that position.

Only sums are kept, and one batch is held at a time. The program runs in evaluation mode, with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.analysis.losses import own_loss
from fxcompress.errors import CompressError, InputError, first_line
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.inputs import labelled_batches
from fxcompress.graph.program import Program
from fxcompress.numerics.saliency import Saliency
from fxcompress.ops.feeding import fed

Array: TypeAlias = NDArray[np.float64]
Site: TypeAlias = tuple[str, int]
"""An activation that contractions read: the name of its node, and the dimension that is summed over."""
Loss: TypeAlias = Callable[[Any, Any], Tensor]

ACTIVATIONS, COVARIANCE, GATES, GRADIENTS = "activations", "covariance", "gates", "gradients"
_NEEDS = {
    "taylor": {GATES},
    "fisher": {GATES},
    "obd": {GRADIENTS},
    "activation": {ACTIVATIONS},
    "variance": {ACTIVATIONS},
    "apoz": {ACTIVATIONS},
    "reconstruction": {ACTIVATIONS},
    "elimination": {ACTIVATIONS, COVARIANCE},
}
WIDEST = 2048
"""Activations with more positions than this get no covariance: it would hold their square."""


@dataclass(frozen=True)
class Moments:
    """Averages over samples and space, per position: of x, |x|, x^2, and of whether x is not zero."""

    mean: Array
    absolute: Array
    square: Array
    active: Array


@dataclass(frozen=True)
class Gates:
    """Averages over samples, per position: of |dL/dm| and (dL/dm)^2."""

    absolute: Array
    square: Array


@dataclass(frozen=True)
class Evidence:
    """What calibration data says about a program. Only what was asked for is filled in.

    Args:
        samples: how many samples were seen.
        moments, gates: by site.
        covariances: by site, `[positions, positions]`.
        squared_gradients: by parameter, the mean over batches of the squared gradient of a sample's loss.
    """

    samples: int
    moments: Mapping[Site, Moments] = field(default_factory=dict)
    gates: Mapping[Site, Gates] = field(default_factory=dict)
    covariances: Mapping[Site, Array] = field(default_factory=dict)
    squared_gradients: Mapping[str, Array] = field(default_factory=dict)


def needs_of(saliency: Saliency) -> frozenset[str]:
    """What a saliency needs to be gathered; empty for those of the weights alone."""
    return frozenset(_NEEDS.get(saliency.kind, ()))


def gather(
    program: Program,
    batches: Iterable[Any],
    needs: frozenset[str],
    loss: Loss | None = None,
    *,
    seed: int = 0,
) -> Evidence:
    """Stream calibration data through a program and keep what is needed of it.

    Args:
        program: the program that is analysed; it is left as it is, gradients of its parameters included.
        batches: calibration data, of inputs or `(inputs, label)`.
        needs: see `needs_of`.
        loss: `loss(outputs, label) -> scalar`, on outputs as the model gives them; by default `own_loss`,
            summed over samples.
        seed: of the labels that are drawn where there are none.

    Raises:
        InputError: no batch, a batch that does not fit, a loss that is no number or does not depend on the
            model, or a gradient that is NaN (the error names the parameter, the user's line and the batch).
    """
    collector = _Collector(program.copy().eval(), needs)
    generator = torch.Generator().manual_seed(seed)
    with_loss = bool(needs & {GATES, GRADIENTS})
    for index, (flat, label) in enumerate(labelled_batches(program, batches)):
        collector.samples = flat[0].shape[0] if flat[0].dim() else 1
        try:
            with torch.set_grad_enabled(with_loss):
                outputs = collector.run_flat(flat)
                if with_loss:
                    collector.differentiate(_loss_of(program, outputs, label, loss, generator))
        except InputError as error:
            raise error.note(f"in calibration batch {index}") from error.__cause__
        collector.seen += collector.samples
    return collector.evidence()


def _loss_of(
    program: Program, outputs: list[Any], label: Any, loss: Loss | None, generator: torch.Generator
) -> Tensor:
    if loss is None:
        return own_loss(dict(zip(program.signature.outputs, outputs, strict=True)), label, generator)
    try:
        value = loss(pytree.tree_unflatten(outputs, program.signature.out_spec), label)
    except CompressError:
        raise
    except Exception as error:
        raise InputError(
            f"the loss failed: {type(error).__name__}: {first_line(error)}",
            hint="loss(outputs, label) takes the outputs as the model gives them, and the "
            "label of the batch or None",
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError(
            f"the loss gave {type(value).__name__} {list(getattr(value, 'shape', []))}, not one number",
            hint="loss(outputs, label) returns a scalar tensor",
        )
    return value.sum()


class _Collector(Executor):
    """Runs the program and adds up what its contractions read and how the loss answers."""

    def __init__(self, program: Program, needs: frozenset[str]) -> None:
        super().__init__(program)
        self.needs = needs
        self.samples, self.seen = 1, 0
        self.sites = dict(_sites(program))
        self.sums: dict[tuple[str, Site], Tensor] = {}
        self.counts: dict[Site, int] = {}
        self.gradients: dict[str, Tensor] = {}
        self.runs = 0
        self.tracked: dict[fx.Node, Tensor] = {}

    def run_flat(self, inputs: Any) -> list[Any]:
        self.tracked.clear()
        return super().run_flat(inputs)

    def after(self, node: fx.Node, value: Any) -> Any:
        """Observe a value; what is to be differentiated becomes a variable."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        wanted = GRADIENTS in self.needs and isinstance(value, torch.nn.Parameter)
        if wanted:
            value = value.detach()
        if node in self.sites and self.needs & {ACTIVATIONS, COVARIANCE}:
            for dim in self.sites[node]:
                self._observe((node.name, dim), value.detach())
        if wanted or (node in self.sites and GATES in self.needs):
            value = value if value.requires_grad else value.detach().requires_grad_()
            self.tracked[node] = value
        return value

    def _observe(self, site: Site, value: Tensor) -> None:
        rows = value.movedim(site[1], -1).reshape(-1, value.shape[site[1]]).double()
        self.counts[site] = self.counts.get(site, 0) + len(rows)
        self._add("mean", site, rows.sum(0))
        self._add("absolute", site, rows.abs().sum(0))
        self._add("square", site, rows.square().sum(0))
        self._add("active", site, (rows != 0).double().sum(0))
        if COVARIANCE in self.needs and rows.shape[1] <= WIDEST:
            self._add("products", site, rows.T @ rows)

    def _add(self, what: str, site: Site, value: Tensor) -> None:
        key = what, site
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def differentiate(self, loss: Tensor) -> None:
        """Add what the gradients of one batch's loss say."""
        if not bool(loss.isfinite()):
            raise InputError(f"the loss is {loss.item()}", hint="look at this batch, and at the loss on it")
        nodes = list(self.tracked)
        if not loss.requires_grad:
            raise InputError(
                "the loss does not depend on what is pruned",
                hint="compute it from the outputs, without detaching them",
            )
        try:
            found = torch.autograd.grad(loss, [self.tracked[node] for node in nodes], allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"the model cannot be differentiated: {first_line(error)}",
                hint="choose a saliency without gradients, such as 'l2' or 'reconstruction'",
            ) from error
        self.runs += 1
        for node, gradient in zip(nodes, found, strict=True):
            if gradient is not None:
                self._check(node, gradient)
                self._differentiated(node, gradient)

    def _differentiated(self, node: fx.Node, gradient: Tensor) -> None:
        if node.op == "get_attr":
            square = gradient.double().square() / self.samples
            name = str(node.target)
            self.gradients[name] = self.gradients[name] + square if name in self.gradients else square
            return
        answers = self.tracked[node].detach().double() * gradient.double()
        for dim in self.sites[node]:
            gates = _by_sample(answers, node, dim, self.samples)
            self._add("gate", (node.name, dim), gates.abs().sum(0))
            self._add("gate^2", (node.name, dim), gates.square().sum(0))

    def _check(self, node: fx.Node, gradient: Tensor) -> None:
        if bool(gradient.isfinite().all()):
            return
        readers = (source for user in node.users for source in user.all_input_nodes)
        stored = node if node.op == "get_attr" else next((n for n in readers if n.op == "get_attr"), node)
        raise InputError(
            f"the gradient at {stored.target if stored.op == 'get_attr' else stored.name} holds a NaN or an "
            "infinity",
            hint="look at this batch, and at the model's numerics on it",
            node=node.format_node(),
            source=walk.source(node),
        )

    def evidence(self) -> Evidence:
        """The averages.

        Raises:
            InputError: an activation held a NaN or an infinity.
        """
        for (_, (name, _)), total in self.sums.items():
            if not bool(total.isfinite().all()):
                node = next(node for node in self.sites if node.name == name)
                raise InputError(
                    f"{name} holds a NaN or an infinity for the calibration data",
                    hint="look at the calibration data, and at the model's numerics on it",
                    node=node.format_node(),
                    source=walk.source(node),
                )
        seen = max(self.seen, 1)
        means = {
            (what, site): (total / (seen if what.startswith("gate") else self.counts[site])).numpy()
            for (what, site), total in self.sums.items()
        }
        kinds = ("mean", "absolute", "square", "active")
        return Evidence(
            self.seen,
            {site: Moments(*(means[kind, site] for kind in kinds)) for site in self.counts},
            {
                site: Gates(mean, means["gate^2", site])
                for (what, site), mean in means.items()
                if what == "gate"
            },
            {
                site: products - np.outer(means["mean", site], means["mean", site])
                for (what, site), products in means.items()
                if what == "products"
            },
            {name: (total / max(self.runs, 1)).numpy() for name, total in self.gradients.items()},
        )


def _sites(program: Program) -> Iterator[tuple[fx.Node, list[int]]]:
    """Every floating activation that contractions read, and the dimensions of it that they sum over."""
    dims: dict[fx.Node, dict[int, None]] = {}
    for node in program.graph.nodes:
        for feed in fed(node):
            dims.setdefault(feed.source, {})[feed.dim] = None
    yield from ((node, list(found)) for node, found in dims.items())


def _by_sample(value: Tensor, node: fx.Node, dim: int, samples: int) -> Tensor:
    """Sums over everything but the sample and one dimension; `[samples, positions]`.

    The sample is told by the first dimension that holds a multiple of the batch, dynamic ones first (windows
    and heads are folded into it batch first). Where there is none, all is one sample.
    """
    others = [place for place in range(value.dim()) if place != dim]
    others.sort(key=lambda place: not walk.is_symbolic(node, place))
    batch = next((place for place in others if value.shape[place] % samples == 0), None)
    if batch is None:
        return value.movedim(dim, -1).reshape(1, -1, value.shape[dim]).sum(1)
    return value.movedim((batch, dim), (0, -1)).reshape(samples, -1, value.shape[dim]).sum(1)

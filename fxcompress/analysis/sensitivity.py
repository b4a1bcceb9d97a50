"""Which layers of a quantized program hurt, measured: what each does to the outputs, alone and among the
others.

The quantized program is run with its pairs switched off, which is the float program; then one layer at a time
reads what its own pairs make of its inputs and its weight, and all that follows it is run again in float:

    alone      |output - float output| / |float output| with only this layer in integers, for the output where
               that is largest
    own        the ratio of the layer's output to its own error, in dB, given float inputs
    snr        the same ratio in the whole quantized program, where errors of earlier layers arrive too

A layer is an operator that reads dequantized values and computes with them; layout is none. Biases are int32
and cost nothing worth telling, so they stay in float, and a correction that was written into them does not
blur the picture.

Cost: three runs of the program for each piece of at most `PIECE` samples, and one run of what depends on it
for every layer, about half the program each: `samples / PIECE * (3 + layers / 2)` runs. `limit` says for how
many layers `alone` is measured, those with the lowest `own`. Memory: the values of one piece, whatever the
number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from fxcompress.analysis.output_error import worst
from fxcompress.analysis.switched import DEQUANTIZE, Switched
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.ops.quantization import Kind, role

SAMPLES = 8
PIECE = 4

PASSES_ON = (Kind.LAYOUT, Kind.PAD)
LOUDEST = 200.0
"""Decibels that stand for no error at all."""


@dataclass(frozen=True)
class LayerError:
    """What quantization does at one layer and, by it alone, at the outputs; `alone` is None where it was not
    measured.
    """

    node: str
    module: str
    snr_db: float
    own_db: float
    alone: float | None
    source: str | None = None


@dataclass(frozen=True)
class Sensitivity:
    """The layers, the worst first, and the relative error of the output that moves most with all of them in
    integers.
    """

    layers: tuple[LayerError, ...]
    total: float
    samples: int

    def worst(self, count: int) -> tuple[LayerError, ...]:
        """Return the layers that hurt most alone."""
        return self.layers[:count]


@dataclass
class _Sums:
    """Squares of errors and of what they are relative to, over everything seen."""

    error: float = 0.0
    reference: float = 0.0

    def add(self, found: Tensor, wanted: Tensor) -> None:
        exact = wanted.double()
        self.error += float((found.double() - exact).square().sum())
        self.reference += float(exact.square().sum())

    @property
    def relative(self) -> float:
        if self.error == 0.0:
            return 0.0
        return math.sqrt(self.error / self.reference) if self.reference > 0.0 else math.inf

    @property
    def decibels(self) -> float:
        return LOUDEST if self.relative == 0.0 else -20.0 * math.log10(self.relative)


@dataclass
class _Outputs:
    """The sums of every output: of the floating ones, where there are any."""

    sums: list[_Sums] = field(default_factory=list)

    def add(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        pairs = list(zip(found, wanted, strict=True))
        judged = [pair for pair in pairs if pair[1].is_floating_point()] or pairs
        self.sums = self.sums or [_Sums() for _ in judged]
        for sums, pair in zip(self.sums, judged, strict=True):
            sums.add(*pair)

    @property
    def relative(self) -> float:
        return worst([sums.error for sums in self.sums], [sums.reference for sums in self.sums])[0]


@dataclass
class _Seen:
    """The sums of one layer."""

    among: _Sums = field(default_factory=_Sums)
    own: _Sums = field(default_factory=_Sums)
    alone: _Outputs = field(default_factory=_Outputs)


def sensitivity(
    reference: Program,
    quantized: Program,
    batches: Iterable[Any],
    *,
    samples: int = SAMPLES,
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Measure every layer of `quantized`, a program with pairs that was made of `reference`.

    Args:
        reference: the float program; its tensors stand for the stored integers where they are switched off.
        quantized: the program with quantize and dequantize nodes.
        batches: calibration data; the first `samples` samples are read.
        samples: how many.
        limit: measure `alone` for this many layers only; None for all of them.
        progress: called with the name of each layer that begins.

    Raises:
        InputError: no data, or a limit or number of samples that cannot be.
    """
    if samples < 1:
        raise InputError(f"samples={samples} must not be negative or zero")
    flat = flat_batches(quantized, batches)
    return attribute(reference, quantized, flat, samples=samples, limit=limit, progress=progress)


def attribute(
    reference: Program,
    quantized: Program,
    batches: Iterable[Sequence[Tensor]],
    *,
    samples: int = SAMPLES,
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Do what `sensitivity` does, for batches of flat inputs."""
    if limit is not None and limit < 0:
        raise InputError(f"limit={limit} must not be negative")
    study = _Study(reference, quantized)
    read = 0
    for piece in _pieces(quantized, batches, samples):
        study.look(piece)
        read += _count(piece)
    if read == 0:
        raise InputError("the calibration data holds no sample", hint="pass batches of at least one")
    chosen = sorted(study.seen, key=lambda node: study.seen[node].own.decibels)[:limit]
    for node in chosen:
        if progress is not None:
            progress(node.name)
    for piece in study.pieces:
        study.isolate(piece, chosen)
    return Sensitivity(study.ranked(set(chosen)), study.total.relative, read)


class _Study:
    """The sums of all layers, while samples stream by."""

    def __init__(self, reference: Program, quantized: Program) -> None:
        self.program, self.runner = quantized, Switched(reference, quantized)
        layers = [node for node in quantized.graph.nodes if is_layer(node)]
        self.seen = {node: _Seen() for node in layers}
        self.total = _Outputs()
        self.pieces: list[list[Tensor]] = []

    def look(self, piece: list[Tensor]) -> None:
        """Add what one piece says of every layer among the others, and of its own error."""
        self.pieces.append(piece)
        exact = self.runner.float_values(piece)
        for node, seen in self.seen.items():
            seen.own.add(self.runner.alone(node, exact), exact[node])
        whole = _Compared(self.program, {node: (seen.among, exact[node]) for node, seen in self.seen.items()})
        wanted = _tensors(exact[walk.output_node(self.program)])
        with torch.no_grad():
            self.total.add(_tensors(whole.run_flat(piece)), wanted)

    def isolate(self, piece: list[Tensor], nodes: Sequence[fx.Node]) -> None:
        """Add what one piece says of the outputs with each layer alone in integers."""
        exact = self.runner.float_values(piece)
        end = walk.output_node(self.program)
        for node in nodes:
            found = self.runner.after_change(node, exact)
            self.seen[node].alone.add(_tensors(found), _tensors(exact[end]))

    def ranked(self, measured: set[fx.Node]) -> tuple[LayerError, ...]:
        """Return the layers: by their error at the outputs, then those without one by their own."""
        rows = [
            LayerError(
                node.name,
                walk.module_path(node),
                seen.among.decibels,
                seen.own.decibels,
                seen.alone.relative if node in measured else None,
                walk.source(node),
            )
            for node, seen in self.seen.items()
        ]
        return tuple(sorted(rows, key=lambda row: -1.0 if row.alone is None else row.alone, reverse=True))


class _Compared(Executor):
    """Runs a program and adds up the errors of some nodes against given values."""

    def __init__(self, program: Program, wanted: dict[fx.Node, tuple[_Sums, Any]]) -> None:
        super().__init__(program)
        self.wanted = wanted

    def after(self, node: fx.Node, value: Any) -> Any:
        """Add the error of one value."""
        if node in self.wanted:
            sums, exact = self.wanted[node]
            sums.add(value, exact)
        return value


def is_layer(node: fx.Node) -> bool:
    """Whether a node computes with dequantized activations or weights."""
    row = role(node)
    if row is None or row.kind in PASSES_ON or not walk.is_tensor(node):
        return False
    return any(_is_layers_pair(source) for source in node.all_input_nodes)


def _is_layers_pair(source: fx.Node) -> bool:
    stored = source.args[0] if source.target in DEQUANTIZE else None
    return isinstance(stored, fx.Node) and not str(stored.target).endswith("_int32")


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _count(piece: Sequence[Tensor]) -> int:
    return int(piece[0].shape[0]) if piece and piece[0].dim() else 1


def _pieces(program: Program, batches: Iterable[Sequence[Tensor]], samples: int) -> Iterator[list[Tensor]]:
    """Yield the first samples of the data, a few at a time where the batch is dynamic."""
    marks = [program.signature.dynamic.get(name, {}).get(0) for name in program.signature.inputs]
    symbol = next((mark for mark in marks if mark is not None), None)
    left = samples
    for batch in batches:
        flat = list(batch)
        size = _count(flat)
        if symbol is None:
            yield flat
            left -= size
        else:
            for start in range(0, min(size, left), PIECE):
                stop = min(start + PIECE, size, left)
                yield [
                    value[start:stop] if mark == symbol else value
                    for value, mark in zip(flat, marks, strict=True)
                ]
            left -= min(size, left)
        if left <= 0:
            return

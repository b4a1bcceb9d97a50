"""Measure a model and its compressed forms: the user's metric, output differences, latency, memory, size.

`callable_program` and `callable_session` give a program and an ONNX model the same face, that of the user's
model, so that one `evaluate` function judges both. Nothing here decides anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.analysis.output_error import worst
from fxcompress.errors import InputError
from fxcompress.graph.execute import run_flat
from fxcompress.graph.inputs import bind
from fxcompress.graph.program import Program
from fxcompress.lowering.acceptance import to_feeds
from fxcompress.runtime.session import open_session, run

Runner = Callable[[Sequence[Tensor]], list[Tensor]]
ModelCall = Callable[..., Any]


class Outputs(dict[str, Any]):
    """A model's named outputs, also reachable as attributes: ``outputs["logits"]`` or ``outputs.logits``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}; there are {', '.join(self)}") from None


@dataclass(frozen=True)
class Difference:
    """How far outputs are apart: the largest and the mean absolute difference over all elements.

    ``relative`` is that of the output it is largest for, the norm of its difference over its expected norm;
    ``output`` is the place of that output. Equal values that are not finite (a logit masked with -inf) do not
    count; where only one is NaN or infinite, all are infinite.
    """

    largest: float
    mean: float
    relative: float
    output: int = 0


def program_runner(program: Program) -> Runner:
    """Return a function from flat inputs to flat outputs that runs the program in torch."""

    def runner(inputs: Sequence[Tensor]) -> list[Tensor]:
        return run_flat(program, inputs)

    return runner


def session_runner(model: onnx.ModelProto | bytes, threads: int = 1) -> Runner:
    """Return a function from flat inputs to flat outputs that runs an ONNX model; names play no part."""
    session = open_session(model, threads=threads)
    names = [value.name for value in session.get_inputs()]

    def runner(inputs: Sequence[Tensor]) -> list[Tensor]:
        results = run(session, to_feeds(names, inputs))
        return [torch.from_numpy(np.asarray(value)) for value in results.values()]

    return runner


def as_model(program: Program, runner: Runner) -> ModelCall:
    """Give a runner the face of the user's model: its arguments, any batch, its structure of outputs.

    Arguments are checked against the program's inputs. A program captured with a static batch is called in
    pieces of that size, the last one padded by repetition.
    """
    spec = program.signature.out_spec
    pieces = None if program.signature.dynamic else _static_batch(program)

    def call(*args: Any, **kwargs: Any) -> Any:
        flat = _flatten(program, args, kwargs, checked=pieces is None)
        outputs = runner(flat) if pieces is None else _in_pieces(runner, flat, pieces)
        result = pytree.tree_unflatten(outputs, spec)
        return Outputs(result) if isinstance(result, dict) else result

    return call


def evaluate_model(evaluate: Callable[[ModelCall], float], model: ModelCall, what: str) -> float:
    """Return the user's metric of one model as a float.

    Raises:
        InputError: `evaluate` returned something that is not a finite number.
    """
    with torch.no_grad():
        result = evaluate(model)
    try:
        metric = float(result)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"evaluate returned a {type(result).__name__} for {what}, expected a number",
            hint="evaluate(f) calls f as it would call the model and returns one float, higher is better",
        ) from error
    if not math.isfinite(metric):
        raise InputError(f"evaluate returned {metric} for {what}", hint="the metric must be a finite number")
    return metric


def differences(
    expected: Runner, found: Mapping[str, Runner], batches: Iterable[Sequence[Tensor]]
) -> dict[str, Difference]:
    """Return, by name, how far the floating outputs of models are from the expected ones over batches of
    inputs.

    The expected outputs are computed once per batch; sums are kept in float64. A model without floating
    outputs has no difference and no entry.
    """
    sums = {name: _Sums() for name in found}
    for inputs in batches:
        wanted = expected(inputs)
        for name, runner in found.items():
            sums[name].add(wanted, runner(inputs))
    return {name: total.difference() for name, total in sums.items() if total.count}


@dataclass
class _Sums:
    """The running sums behind one `Difference`; squares are by the place of the output."""

    largest: float = 0.0
    absolute: float = 0.0
    count: int = 0
    squares: dict[int, float] = field(default_factory=dict)
    references: dict[int, float] = field(default_factory=dict)

    def add(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        for place, (left, right) in enumerate(zip(expected, found, strict=True)):
            if not left.is_floating_point() or not left.numel():
                continue
            wide, other = left.double(), right.double()
            finite = wide.isfinite() & other.isfinite()
            same = (wide == other) | (wide.isnan() & other.isnan())
            gap = (other - wide).abs().where(finite, math.inf)[finite | ~same]
            if not gap.numel():
                continue
            self.largest = max(self.largest, float(gap.max()))
            self.absolute += float(gap.sum())
            self.count += gap.numel()
            norm = float(wide[wide.isfinite()].square().sum())
            self.squares[place] = self.squares.get(place, 0.0) + float(gap.square().sum())
            self.references[place] = self.references.get(place, 0.0) + norm

    def difference(self) -> Difference:
        relative, at = worst(list(self.squares.values()), list(self.references.values()))
        return Difference(self.largest, self.absolute / self.count, relative, list(self.squares)[at])


def resized(program: Program, batch: int) -> tuple[list[Tensor], int]:
    """Return the example's flat inputs with ``batch`` samples, repeated or cut, and the samples they really
    hold.

    Only a dynamic first dimension can be resized; a program without one gives its example as it is.
    """
    flat = program.flat_example()
    symbol = batch_symbol(program)
    if symbol is None:
        return flat, flat[0].shape[0] if flat and flat[0].dim() else 1
    resized_inputs = []
    for name, value in zip(program.signature.inputs, flat, strict=True):
        for dim, held in program.signature.dynamic.get(name, {}).items():
            if held == symbol:
                value = value.index_select(dim, torch.arange(batch) % value.shape[dim])
        resized_inputs.append(value)
    return resized_inputs, batch


def batch_symbol(program: Program) -> str | None:
    """Return the name of the dynamic first dimension of the inputs, or None where the batch is static."""
    symbols = (program.signature.dynamic.get(name, {}).get(0) for name in program.signature.inputs)
    return next((symbol for symbol in symbols if symbol is not None), None)


def _flatten(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], checked: bool) -> list[Tensor]:
    if args and kwargs:
        args, kwargs = (), _by_name(program, args, kwargs)
    given = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else (args or kwargs)
    return bind(program if checked else program.signature, given)


def _by_name(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional and keyword arguments together, by the names of the program's inputs."""
    names = program.signature.inputs
    if len(args) > len(names):
        raise InputError(
            f"the model is called with {len(args) + len(kwargs)} inputs; it was captured with {len(names)}: "
            f"{', '.join(names)}"
        )
    placed = dict(zip(names, args, strict=False))
    twice = placed.keys() & kwargs.keys()
    if twice:
        raise InputError(f"the model is called with two values for {', '.join(sorted(twice))}")
    return {**placed, **kwargs}


def _static_batch(program: Program) -> int | None:
    """Return the batch that a static program was captured with, None where its inputs share no first size."""
    sizes = {value.shape[0] if value.dim() else 0 for value in program.flat_example()}
    return sizes.pop() if len(sizes) == 1 and sizes != {0} else None


def _in_pieces(runner: Runner, flat: Sequence[Tensor], size: int) -> list[Tensor]:
    """Run a model with a static batch on any number of samples.

    Raises:
        InputError: an output is a single number, or has no row for each sample: no pieces make it up.
    """
    total = flat[0].shape[0]
    if total == size or total == 0 or any(value.dim() == 0 or value.shape[0] != total for value in flat):
        return runner(flat)
    pieces: list[list[Tensor]] = []
    for start in range(0, total, size):
        index = torch.arange(start, start + size).clamp(max=total - 1)
        pieces.append(runner([value.index_select(0, index) for value in flat]))
        odd = next((value for value in pieces[-1] if value.dim() == 0 or value.shape[0] != size), None)
        if odd is not None:
            what = f"a tensor of {list(odd.shape)}" if odd.dim() else "one number"
            raise InputError(
                f"the model returns {what} for its fixed batch of {size}, and was called with {total}",
                hint=f"call it with batches of {size} in evaluate, or capture it with a dynamic batch",
            )
    return [torch.cat(parts)[:total] for parts in zip(*pieces, strict=True)]

"""Ways to run the deployed program in fewer bits: made by `api/quantizing.py`, candidates once lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from torch import Tensor

from fxcompress.graph.program import Program
from fxcompress.plan.quantization_plan import QuantizationPlan
from fxcompress.report.report import Proof

Batch = Sequence[Tensor]
"""Flat inputs of a program."""

Prover = Callable[[onnx.ModelProto, Sequence[Batch]], Proof]
"""Compares the lowered model with its program on a few batches; raises ProofError."""


@dataclass(frozen=True)
class Variant:
    """A program in fewer bits.

    Args:
        name: the candidate's name in the report; the first variant of a mode is the one that
            `precision="full"` asks for.
        program: what is lowered.
        plan: the precision of every operator, where it was planned.
        notes: what a reader of the report should know, if this one is handed out.
        reference: the float program that it was quantized from.
        without: makes the same with some operators (node names) in float; None where nothing is left.
        prove: how its model is proven; None stands for the bound of integers, which needs a `plan`'s
            Q/DQ pairs.
    """

    name: str
    program: Program
    plan: QuantizationPlan | None = None
    notes: tuple[str, ...] = ()
    prove: Prover | None = None
    reference: Program | None = None
    without: Callable[[frozenset[str]], Variant | None] | None = None


@dataclass(frozen=True)
class Tradeoff:
    """A point of the latency-accuracy frontier of the cut that is made where the points before lose too much.

    Args:
        variant: the name of this choice: of a candidate that was made anyway, or of one to make.
        operators: node names of the operators in int8.
        ms: predicted milliseconds of the operators that have prices.
        error: predicted relative error, from what each operator does alone: only its order means much.
        plan: decides the schemes.
        make: makes the variant of that plan.
    """

    variant: str
    operators: frozenset[str]
    ms: float
    error: float
    plan: Callable[[], QuantizationPlan]
    make: Callable[[QuantizationPlan], Variant]


@dataclass(frozen=True)
class Quantized:
    """The variants to try, and the frontier of the cut, where there is one.

    `frontier` goes from the fastest point to the most accurate; `reweighed` is what it becomes with other
    squared relative errors by operator.
    """

    variants: tuple[Variant, ...] = ()
    frontier: tuple[Tradeoff, ...] = ()
    reweighed: Callable[[Mapping[str, float]], tuple[Tradeoff, ...]] | None = None

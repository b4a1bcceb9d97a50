"""A program that computes in float16 or bfloat16 against its session.

    |session - program|  <=  2 |program - float program|  +  4 eps |program|,   eps that of the half precision

A runtime may compute parts of it in float32, and so be closer to the float program than the program itself
is; no closer than that, though, and no further on the other side. The norm is Euclidean, for every output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from fxcompress.errors import ProofError
from fxcompress.graph.execute import run_flat
from fxcompress.graph.program import Program
from fxcompress.proof.distance import distance, finite_distance, size
from fxcompress.proof.exposure import outputs_of

ROOM = 2.0
STEPS = 4.0


@dataclass(frozen=True)
class HalfBound:
    """The distance of the session from the program, what it may be, and the output closest to that."""

    error: float
    bound: float
    output: str


def half_bound(
    float_program: Program,
    program: Program,
    model: onnx.ModelProto,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
) -> HalfBound:
    """Prove the bound on the given flat inputs.

    Raises:
        ProofError: an output is further away, or not of the kind that the program's is.
        SessionError: the model does not load or does not take the inputs.
    """
    session = outputs_of(model, inputs, optimize=True)
    short = [tensor.numpy() for tensor in run_flat(program, inputs)]
    exact = [tensor.numpy() for tensor in run_flat(float_program, inputs)]
    eps = float(torch.finfo(dtype).eps)
    judged = []
    for name, theirs, mine, wanted in zip(program.signature.outputs, session, short, exact, strict=True):
        if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
            raise ProofError(
                f"output {name!r} is {theirs.dtype}{list(theirs.shape)} in the session and "
                f"{mine.dtype}{list(mine.shape)} in the program"
            )
        error = distance(theirs, mine)
        bound = ROOM * finite_distance(mine, wanted) + STEPS * eps * size(mine)
        if not error <= bound:
            raise ProofError(
                f"output {name!r} of the session is {error:.3g} away from the program in half precision; "
                f"{bound:.3g} is allowed"
            )
        judged.append(HalfBound(error, bound, name))
    return max(judged, key=lambda item: item.error / item.bound if item.bound > 0 else 0.0)

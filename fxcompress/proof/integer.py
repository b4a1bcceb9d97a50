"""An int8 program against its ONNX session: every operator within one step, and the whole within the error it
admits.

(a) *Operator by operator*, with the runtime's graph optimizations off. Every quantized value is an output of
the session. The program is run along with it, and at each quantization its integers must be within one step
(one LSB) of the session's; it then goes on with the session's integers. So each operator is judged alone, on
equal inputs, and a rounding that falls the other way at one of them is not carried to the next.

(b) *End to end*, with optimizations on, where integer kernels replace Q/DQ pairs and round elsewhere:

    |session - int8 program|_2  <=  1/2 |int8 program - float program|_2  +  1024 eps |int8 program|_2

for every output: what the runtime adds stays below half of what quantization itself costs. The norm is
Euclidean over all elements of an output; the last term is for networks where quantization costs nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from numpy.typing import NDArray
from torch import fx

from fxcompress.errors import ProofError
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.program import Program
from fxcompress.proof.exposure import inner_values, outputs_of

SHARE = 0.5
TAIL = 1024.0 * float(np.finfo(np.float32).eps)
"""Relative rounding of a short float32 chain: a hundred eps for a long sum, times the ten operators of a
chain.
"""

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


@dataclass(frozen=True)
class IntegerBound:
    """What was proved.

    Attributes:
        quantizers: quantizations compared with the session, operator by operator.
        off_by_one: share of their integers that differ, each by one step.
        error: Euclidean distance of the optimising session from the int8 program, for the output closest to
            its bound.
        bound: what that distance may be.
        output: the name of that output.
    """

    quantizers: int
    off_by_one: float
    error: float
    bound: float
    output: str


def integer_bound(
    float_program: Program, int8_program: Program, model: onnx.ModelProto, inputs: Sequence[torch.Tensor]
) -> IntegerBound:
    """Prove both bounds on the given flat inputs.

    Args:
        float_program: the program before quantization.
        int8_program: the program with Q/DQ.
        model: what `lower(int8_program)` returned.
        inputs: flat inputs, in the order of the signature; a few representative samples.

    Raises:
        ProofError: an operator is off by more than one step, a quantization is not in the file, or the whole
            is further away than half of the quantization error.
        SessionError: the model does not load or does not take the inputs.
    """
    follower = _follow(int8_program, model, inputs)
    worst = _end_to_end(float_program, int8_program, model, inputs)
    differing, total = sum(follower.differing), sum(follower.compared)
    return IntegerBound(len(follower.compared), differing / max(1, total), *worst)


def _follow(program: Program, model: onnx.ModelProto, inputs: Sequence[torch.Tensor]) -> _Follower:
    """Part (a)."""
    quantizers = [node for node in program.graph.nodes if node.target is _QUANTIZE]
    inner = inner_values(model, [node.name for node in quantizers], inputs)
    for node in quantizers:
        if node.name not in inner and not _cancels(node):
            raise _failure(node, f"the quantization {node.name} is not in the ONNX file")
    follower = _Follower(program, inner)
    with torch.no_grad():
        outputs = follower.run_flat(list(inputs))
    session = outputs_of(model, inputs, optimize=False)
    for name, mine, theirs in zip(program.signature.outputs, outputs, session, strict=True):
        expected = mine.numpy()
        if expected.shape != theirs.shape:
            raise ProofError(
                f"output {name!r} is {theirs.shape} in the session and {expected.shape} in the program"
            )
        gap = np.abs(expected.astype(np.float64) - theirs).max(initial=0.0)
        scale = np.abs(expected.astype(np.float64)).max(initial=0.0)
        if not gap <= TAIL * scale:
            raise ProofError(
                f"output {name!r} differs by {gap:.3g} from the unoptimised session on equal integers; "
                f"rounding explains {TAIL * scale:.3g}"
            )
    return follower


class _Follower(Executor):
    """Runs a program, compares its integers with the session's at every quantization, goes on with those."""

    def __init__(self, program: Program, inner: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(program)
        self.inner = inner
        self.compared: list[int] = []
        self.differing: list[int] = []

    def after(self, node: fx.Node, value: Any) -> Any:
        """Judge one quantization."""
        theirs = self.inner.get(node.name)
        if theirs is None:
            return value
        mine = value.numpy()
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise _failure(
                node,
                f"{node.name} is {mine.dtype}{list(mine.shape)} in the program and "
                f"{theirs.dtype}{list(theirs.shape)} in the session",
            )
        steps = np.abs(mine.astype(np.int32) - theirs.astype(np.int32))
        if steps.max(initial=0) > 1:
            raise _failure(
                node,
                f"{node.name} is up to {int(steps.max())} steps away from the session, given equal inputs "
                f"({float((steps > 1).mean()):.1%} of its elements by more than one)",
            )
        self.compared.append(steps.size)
        self.differing.append(int(np.count_nonzero(steps)))
        return torch.from_numpy(theirs.copy())


def _end_to_end(
    float_program: Program, int8_program: Program, model: onnx.ModelProto, inputs: Sequence[torch.Tensor]
) -> tuple[float, float, str]:
    """Part (b): error, bound and name of the output that comes closest to its bound."""
    session = outputs_of(model, inputs, optimize=True)
    quantized = [tensor.numpy() for tensor in run_flat(int8_program, inputs)]
    exact = [tensor.numpy() for tensor in run_flat(float_program, inputs)]
    judged = []
    for name, theirs, mine, wanted in zip(
        int8_program.signature.outputs, session, quantized, exact, strict=True
    ):
        error = _distance(theirs, mine)
        bound = SHARE * _distance(mine, wanted) + TAIL * _distance(mine, np.zeros_like(mine))
        if not error <= bound:
            raise ProofError(
                f"output {name!r} of the optimising session is {error:.3g} away from the int8 program, "
                f"more than half of the quantization error ({bound:.3g})",
                hint="the runtime's integer kernels change this network more than its quantization does; "
                "leave the operators that are listed as executed in int8 but not intended so in float",
            )
        judged.append((error, bound, name))
    return max(judged, key=lambda item: item[0] / item[1] if item[1] > 0 else 0.0)


def _distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    return float(np.linalg.norm((left.astype(np.float64) - right.astype(np.float64)).ravel()))


def _cancels(node: fx.Node) -> bool:
    """Whether a quantization undoes the dequantization it reads, so that lowering may drop it."""
    before = node.args[0]
    return isinstance(before, fx.Node) and before.target is _DEQUANTIZE and before.args[1:6] == node.args[1:6]


def _failure(node: fx.Node, message: str) -> ProofError:
    """An error at a quantization, which shows the operator that made the value."""
    made = node.args[0] if isinstance(node.args[0], fx.Node) else node
    while made.target is operator.getitem and isinstance(made.args[0], fx.Node):
        made = made.args[0]
    return ProofError(message, node=made.format_node(), source=walk.source(made))

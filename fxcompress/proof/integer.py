"""An int8 program against its ONNX session: every operator within one step, the whole within its own error.

(a) *Operator by operator.* Every quantized value is made an output of the session. The program is run along
with it, and at each quantization its integers must be within one step (one LSB) of the session's; it then
goes on with the session's integers. So each operator is judged alone, on equal inputs, and a rounding that
falls the other way at one of them is not carried to the next. This is done twice: with the runtime's graph
optimizations off, which judges the file as written, and with them on, which judges the integer kernels that
replace Q/DQ pairs. In the file as written an integer may differ at a tie only (`proof.ties`).

(b) *End to end*, the session as it will be deployed, for every output:

    |session - int8 program|  <=  1/2 |int8 program - float program|
                                  + 2 |what ties make of the int8 program|
                                  + 1024 eps |int8 program|

What the runtime adds stays below half of what quantization itself costs. The norm is Euclidean over all
elements of an output. The second term is the network's answer to roundings that (a) has shown to be ties: the
distance of the unoptimised session, and of the optimising one with its integers in the open where all that
differ there are ties. A ResNet-50 with random weights amplifies three of them in a million to 60 % of its
quantization error, because every later rounding is drawn afresh; in a network of a dozen channels one of them
before the last product is more than half of the error. The last term is for networks where quantization costs
nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from fxcompress.proof.distance import distance, finite_distance, gap, largest, size
from fxcompress.proof.double import in_double
from fxcompress.proof.exposure import inner_values, outputs_of
from fxcompress.proof.ties import KERNEL, WRITTEN, Flips, flips, rounding

SHARE = 0.5
NOISE = 2.0
RARE = 1e-3
"""Share of roundings that may fall the other way between equal operators; a few in a million are seen."""
TAIL = 1024.0 * float(np.finfo(np.float32).eps)
"""Relative rounding of a short float32 chain: a hundred eps for a long sum, times the ten operators of a
chain.
"""
ROOM = 8.0
"""As in `proof.parity`: the session's rounding is another draw of the program's own."""

Arrays = Sequence[NDArray[Any]]

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


@dataclass(frozen=True)
class IntegerBound:
    """What was proved.

    Attributes:
        quantizers: quantizations compared with the session, operator by operator.
        off_by_one: share of their integers that differ, each by one step, with optimizations off and on
            together.
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
    float_program: Program,
    int8_program: Program,
    model: onnx.ModelProto,
    inputs: Sequence[torch.Tensor],
    *,
    optimize: bool = True,
) -> IntegerBound:
    """Prove both bounds on the given flat inputs.

    Args:
        float_program: the program before quantization.
        int8_program: the program with Q/DQ.
        model: what `lower(int8_program)` returned.
        inputs: flat inputs, in the order of the signature; a few representative samples.
        optimize: the optimising session, with its integer kernels, is judged too. Left out for a file that
            another runtime will execute: then the file as it is written is what is proven.

    Raises:
        ProofError: an operator is off by more than one step, or in the file as written by what is no tie, a
            quantization is not in the file, or the whole is further away than the bound.
        SessionError: the model does not load or does not take the inputs.
    """
    written, plain = _follow(int8_program, model, inputs, optimize=False)
    followers, session, tied = [written], plain, [plain]
    if optimize:
        deployed, opened = _follow(int8_program, model, inputs, optimize=True)
        followers.append(deployed)
        session = outputs_of(model, inputs, optimize=True)
        if all(found.ties(KERNEL) for found in deployed.flips):
            tied.append(opened)
    worst = end_to_end(float_program, int8_program, inputs, session, tied)
    differing = sum(found.count for follower in followers for found in follower.flips)
    compared = sum(found.of for follower in followers for found in follower.flips)
    return IntegerBound(len(written.flips), differing / max(1, compared), *worst)


def _follow(
    program: Program, model: onnx.ModelProto, inputs: Sequence[torch.Tensor], *, optimize: bool
) -> tuple[_Follower, Arrays]:
    """Part (a), in one setting of the runtime; also the outputs of that session."""
    quantizers = [node for node in program.graph.nodes if node.target is _QUANTIZE]
    inner, session = inner_values(model, [node.name for node in quantizers], inputs, optimize=optimize)
    follower = _Follower(program, inner, ties_only=not optimize)
    with torch.no_grad():
        outputs = follower.run_flat(list(inputs))
    follower.resolve(inputs)
    for name, mine, theirs in zip(program.signature.outputs, outputs, session, strict=True):
        check_tail(name, mine.numpy(), theirs)
    return follower, session


def check_tail(name: str, mine: NDArray[Any], theirs: NDArray[Any]) -> None:
    """What follows the last quantization is float arithmetic on equal integers."""
    if mine.shape != theirs.shape:
        raise ProofError(f"output {name!r} is {theirs.shape} in the session and {mine.shape} in the program")
    apart = np.abs(gap(mine, theirs)).max(initial=0.0)
    explained = TAIL * largest(mine)
    if not apart <= explained:
        raise ProofError(
            f"output {name!r} differs by {apart:.3g} from the session on equal integers; rounding explains "
            f"{explained:.3g}"
        )


class _Doubt(NamedTuple):
    """A quantization to judge in float64: what it reads, its integers in the program and in the session, and
    its scale, zero point and range.
    """

    value: torch.Tensor
    mine: torch.Tensor
    theirs: torch.Tensor
    scheme: tuple[float, int, int, int]


class _Follower(Executor):
    """Runs a program, compares its integers with the session's at every quantization, goes on with those."""

    def __init__(self, program: Program, inner: Mapping[str, NDArray[Any]], *, ties_only: bool) -> None:
        super().__init__(program)
        self.program = program
        self.inner = inner
        self.ties_only = ties_only
        self.flips: list[Flips] = []
        self.integers: dict[str, torch.Tensor] = {}
        self.doubtful: dict[fx.Node, _Doubt] = {}

    def after(self, node: fx.Node, value: Any) -> Any:
        """Judge one quantization."""
        theirs = self.inner.get(node.name)
        if theirs is None and (node.target is not _QUANTIZE or _cancels(node)):
            if node.target is _QUANTIZE:
                self.integers[node.name] = value
            return value
        mine = value.numpy()
        if theirs is None:
            theirs = self._twin(node, mine)
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise _failure(
                node,
                f"{node.name} is {mine.dtype}{list(mine.shape)} in the program and "
                f"{theirs.dtype}{list(theirs.shape)} in the session",
            )
        found = self.integers[node.name] = torch.from_numpy(theirs.copy())
        self._judge(node, value, found)
        return found

    def _judge(self, node: fx.Node, mine: torch.Tensor, theirs: torch.Tensor) -> None:
        value, scale, zero, low, high, *_ = self.fetch_args_kwargs_from_env(node)[0]
        found = flips(value, mine, theirs, scale, zero)
        if found.steps > 1:
            raise _failure(node, found.said(node.name, WRITTEN))
        if self.ties_only and not found.ties(WRITTEN):
            self.doubtful[node] = _Doubt(value, mine, theirs, (scale, zero, low, high))
        self.flips.append(found)

    def resolve(self, inputs: Sequence[torch.Tensor]) -> None:
        """Judge in float64 what no tie of the values in float32 explains: a stretch in float may cancel.

        Raises:
            ProofError: the rounding of the program itself does not explain it either.
        """
        sources = {node: node.all_input_nodes[0].name for node in self.doubtful}
        if not sources:
            return
        exact = in_double(self.program, inputs, self.integers, set(sources.values()))
        for node, doubt in self.doubtful.items():
            value = exact[sources[node]]
            room = WRITTEN + ROOM * rounding(doubt.value, value, *doubt.scheme)
            found = flips(value, doubt.mine, doubt.theirs, *doubt.scheme[:2])
            if not found.ties(room):
                raise _failure(node, found.said(node.name, room))

    def _twin(self, node: fx.Node, mine: NDArray[Any]) -> NDArray[Any]:
        """The session's integers for a quantization that is not in the file: those of one that is equal.

        Lowering and the runtime write one operator for two that are equal, none for what changes nothing,
        such as the concatenation of one tensor. Equal means one scheme and the same integers in this order,
        up to a rare rounding that falls the other way.

        Raises:
            ProofError: no quantization of the file is equal.
        """
        for other in node.graph.nodes:
            if other.target is _QUANTIZE and other.args[1:] == node.args[1:] and other.name in self.inner:
                theirs = self.inner[other.name]
                if theirs.size == mine.size and np.mean(mine.ravel() != theirs.ravel()) <= RARE:
                    return theirs.reshape(mine.shape)
        raise _failure(node, f"the quantization {node.name} is not in the ONNX file")


def end_to_end(
    float_program: Program,
    int8_program: Program,
    inputs: Sequence[torch.Tensor],
    session: Arrays,
    tied: Sequence[Arrays],
) -> tuple[float, float, str]:
    """Part (b), given the outputs of the session to judge, and those of sessions away by ties alone.

    Returns error, bound and name of the output that comes closest to its bound.
    """
    names = int8_program.signature.outputs
    quantized = [tensor.numpy() for tensor in run_flat(int8_program, inputs)]
    exact = [tensor.numpy() for tensor in run_flat(float_program, inputs)]
    judged = []
    for name, theirs, mine, wanted, *others in zip(names, session, quantized, exact, *tied, strict=True):
        cost = finite_distance(mine, wanted)
        error = distance(theirs, mine)
        noise = max(finite_distance(other, mine) for other in others)
        bound = SHARE * cost + NOISE * noise + TAIL * size(mine)
        if not error <= bound:
            raise ProofError(
                f"output {name!r} of the optimising session is {error:.3g} away from the int8 program; "
                f"{bound:.3g} is allowed, and quantization itself costs {cost:.3g}",
                hint="the runtime's integer kernels change this network more than its quantization does",
            )
        judged.append((error, bound, name))
    return max(judged, key=lambda item: item[0] / item[1] if item[1] > 0 else 0.0)


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

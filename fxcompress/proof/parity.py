"""A float program against its ONNX session: equal up to the rounding of float32.

How much two correct float32 evaluations may differ depends on the network: a deep one amplifies rounding. So
the bound is not a constant but is measured on the program itself:

    |session - program in float64|  <=  8 max|program in float32 - program in float64|  +  64 eps max|output|

The first term is what rounding does to this network on this input; the session rounds in other places (other
summation orders, fused and blocked kernels, polynomial approximations of exp and erf), which is another draw
of the same error, and 8 is room for an unlucky one. The second term covers networks so shallow that the
program in float32 happens to be exact: a sum of n terms is off by some sqrt(n) eps, and fan-ins reach
thousands. Together they stay near 1e-5 of the largest output, a thousandth of what a weight off by a percent
does. A program that casts to a narrower type on its way is held to that type: two float32 values that differ
by nothing may fall to either side of a rounding in float16, so 64 eps becomes 4 times the eps of the
narrowest type.

Integer and boolean outputs must be equal, and infinities in the same places. A program that gives NaN is
refused: nothing can be said about it. With dynamic sizes both are compared at the example's and at another
size, so that a size that was baked into the file is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx

from fxcompress.errors import ProofError
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.program import Program
from fxcompress.lowering.acceptance import example_feeds
from fxcompress.proof.exposure import inner_values, outputs_of

ROOM = 8.0
FLOOR = 64.0 * float(np.finfo(np.float32).eps)
NARROW = 4.0
"""Steps of a type narrower than float32 that an output may be off by."""


@dataclass(frozen=True)
class Parity:
    """The output that comes closest to its bound: its largest absolute error, the bound, and its name."""

    error: float
    bound: float
    output: str


def parity_at_sizes(program: Program, model: onnx.ModelProto) -> Parity:
    """Prove parity on the program's example and, where dimensions are dynamic, with each of them one larger.

    Returns:
        The output that comes closest to its bound, at either size.

    Raises:
        ProofError: as `float_parity`, at either size.
        SessionError: the model does not load or does not take one of the sizes.
    """
    names = program.signature.inputs
    judged = []
    for place, feeds in enumerate(example_feeds(program, names)):
        inputs = [torch.from_numpy(feeds[name]) for name in names]
        try:
            judged.append(float_parity(program, model, inputs))
        except ProofError as error:
            shapes = ", ".join(f"{name}{list(feeds[name].shape)}" for name in names)
            raise error.note(
                f"with inputs {shapes}" + (", larger than the example" if place else "")
            ) from None
    return max(judged, key=_closeness)


def float_parity(program: Program, model: onnx.ModelProto, inputs: Sequence[torch.Tensor]) -> Parity:
    """Prove that the optimising session computes what the program computes.

    Args:
        program: a float32 program in evaluation mode.
        model: what `lower(program)` returned.
        inputs: flat inputs, in the order of `program.signature.inputs`.

    Raises:
        ProofError: an output is further away than rounding explains; names the first operator that is. Or the
            program itself gives NaN; names the first operator that makes one.
        SessionError: the model does not load or does not take the inputs.
    """
    single = [_array(tensor) for tensor in run_flat(program, inputs)]
    _refuse_nan(program, single, inputs)
    results = outputs_of(model, inputs, optimize=True)
    exact = program.to(torch.float64)
    double = [_array(tensor) for tensor in run_flat(exact, [_double(tensor) for tensor in inputs])]
    if not len(results) == len(single) == len(program.signature.outputs):
        raise ProofError(f"the session has {len(results)} outputs and the program {len(single)}")
    floor = _floor(program)
    judged = [
        _judge(name, floor, *arrays)
        for name, *arrays in zip(program.signature.outputs, results, single, double, strict=True)
    ]
    worst = max(judged, key=_closeness)
    if not worst.error <= worst.bound:
        node = _first_divergence(program, model, inputs)
        raise ProofError(
            f"output {worst.output!r} of the ONNX session is {worst.error:.3g} away from the program; "
            f"rounding explains {worst.bound:.3g}",
            node=node.format_node() if node is not None else None,
            source=walk.source(node) if node is not None else None,
            hint="the first operator that differs is shown" if node is not None else None,
        )
    return worst


def _refuse_nan(program: Program, outputs: Sequence[NDArray[Any]], inputs: Sequence[torch.Tensor]) -> None:
    """Raise ProofError where the program's own outputs hold NaN."""
    for name, output in zip(program.signature.outputs, outputs, strict=True):
        if not (np.issubdtype(output.dtype, np.floating) and np.isnan(output).any()):
            continue
        finder = _NanFinder(program)
        with torch.no_grad():
            finder.run_flat(list(inputs))
        node = finder.first
        raise ProofError(
            f"the model itself gives NaN in {np.isnan(output).mean():.0%} of output {name!r} on the example",
            node=node.format_node() if node is not None else None,
            source=walk.source(node) if node is not None else None,
            hint="pass example inputs for which the model gives numbers, or mend the operator shown, "
            "the first to make NaN",
        )


class _NanFinder(Executor):
    """Remembers the first node whose value holds NaN."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.first: fx.Node | None = None

    def after(self, node: fx.Node, value: Any) -> Any:
        """Look for NaN."""
        if self.first is None and isinstance(value, torch.Tensor) and bool(value.isnan().any()):
            self.first = node
        return value


def _floor(program: Program) -> float:
    """The relative error that any output may have: a few steps of the narrowest type on the way."""
    made = [node for node in program.graph.nodes if node.op == "call_function" and walk.is_tensor(node)]
    values = [walk.dtype(node) for node in made]  # what is stored in a narrow type is exact
    steps = [torch.finfo(dtype).eps for dtype in values if dtype.is_floating_point]
    narrowest = max(steps, default=0.0)
    return max(FLOOR, NARROW * narrowest if narrowest > torch.finfo(torch.float32).eps else 0.0)


def _judge(
    name: str, floor: float, result: NDArray[Any], single: NDArray[Any], double: NDArray[Any]
) -> Parity:
    """Compare one output; a difference in kind counts as an infinite error."""
    if result.shape != single.shape or result.dtype != single.dtype:
        raise ProofError(
            f"output {name!r} is {result.dtype}{list(result.shape)} in the session and "
            f"{single.dtype}{list(single.shape)} in the program"
        )
    if not np.issubdtype(result.dtype, np.floating):
        return Parity(0.0 if np.array_equal(result, single) else float("inf"), 0.0, name)
    finite = np.isfinite(single)
    if not np.array_equal(result[~finite], single[~finite].astype(result.dtype)):
        return Parity(float("inf"), 0.0, name)
    if not finite.any():
        return Parity(0.0, 0.0, name)
    exact = double[finite]
    error = np.abs(result[finite] - exact).max()
    rounding = np.abs(single[finite] - exact).max()
    return Parity(float(error), float(ROOM * rounding + floor * np.abs(exact).max()), name)


def _closeness(parity: Parity) -> float:
    if parity.bound > 0.0:
        return parity.error / parity.bound
    return float("inf") if parity.error != 0.0 else 0.0


def _first_divergence(
    program: Program, model: onnx.ModelProto, inputs: Sequence[torch.Tensor]
) -> fx.Node | None:
    """The first node whose own computation differs between the program and the unoptimised session, if one
    does.

    Every node is given the session's inputs, so that what went wrong before it does not count against it.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and walk.is_tensor(node)]
    inner, _ = inner_values(model, [node.name for node in nodes], inputs)
    comparer = _Comparer(program, inner)
    with torch.no_grad():
        comparer.run_flat(list(inputs))
    return comparer.first


class _Comparer(Executor):
    """Runs a program on the session's values and remembers the first node that disagrees by a part in a
    thousand.
    """

    def __init__(self, program: Program, inner: dict[str, NDArray[Any]]) -> None:
        super().__init__(program)
        self.inner = inner
        self.first: fx.Node | None = None

    def after(self, node: fx.Node, value: Any) -> Any:
        """Compare with the session's value and go on with that one."""
        theirs = self.inner.get(node.name)
        if theirs is None or self.first is not None or not isinstance(value, torch.Tensor):
            return value
        mine = _array(value)
        finite = mine[np.isfinite(mine)].astype(np.float64)
        scale = np.abs(finite).max(initial=0.0)
        if mine.shape != theirs.shape or not np.allclose(mine, theirs, 1e-3, 1e-4 * scale, equal_nan=True):
            self.first = node
            return value
        return torch.from_numpy(theirs.copy()).to(value.dtype)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _array(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = torch.as_tensor(tensor).detach().cpu().numpy()
    return array

"""Products with run-time quantization, or with weights in blocks, against their ONNX session.

(a) *Operator by operator*, as `proof.integer` does it: the session's values replace the program's as soon as
they have been compared, so that each operator is judged alone, on equal inputs; with the runtime's
optimizations off and on.

- Integers that a run-time quantization writes are within one step.
- A product is off by at most `32 eps (|x| |W| + |b|)`: sums of float32 in another order. (Sums of integers
  are exact.) Where the program rounds activations in blocks, the runtime may round by other rules or not at
  all, and what that rounding does to this product on this input is added.

(b) *End to end*, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.errors import ProofError
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.program import Program
from fxcompress.lowering.runtime_forms import before_rounding
from fxcompress.proof.exposure import inner_values, outputs_of
from fxcompress.proof.integer import check_tail, end_to_end
from fxcompress.proof.ties import KERNEL, Flips, flips

SUMS = 32.0 * float(np.finfo(np.float32).eps)
"""Relative to the sum of magnitudes: a sum of n terms is off by some sqrt(n) eps."""

integers = torch.ops.quantized_decomposed
_QUANTIZE = integers.quantize_per_tensor.tensor
_WEIGHTS = (integers.dequantize_per_channel.default, integers.dequantize_per_channel_group.default)


@dataclass(frozen=True)
class ProductBound:
    """What was proved.

    Attributes:
        products: products compared with the session, each with optimizations off and on.
        closest: the largest error of a product as a share of what it may be.
        error: Euclidean distance of the optimising session from the program, for the output closest to its
            bound.
        bound: what that distance may be.
        output: the name of that output.
    """

    products: int
    closest: float
    error: float
    bound: float
    output: str


def product_bound(
    float_program: Program, program: Program, model: onnx.ModelProto, inputs: Sequence[Tensor]
) -> ProductBound:
    """Prove both bounds on the given flat inputs.

    Args:
        float_program: the program before quantization.
        program: the program with run-time quantization or weights in blocks.
        model: what `lower(program)` returned.
        inputs: flat inputs, in the order of the signature.

    Raises:
        ProofError: an operator is off, a product is not in the file, or the whole is further away than the
            bound.
        SessionError: the model does not load or does not take the inputs.
    """
    written, plain = _follow(program, model, inputs, optimize=False)
    deployed, opened = _follow(program, model, inputs, optimize=True)
    session = outputs_of(model, inputs, optimize=True)
    tied = [plain, opened] if deployed.ties() else [plain]
    worst = end_to_end(float_program, program, inputs, session, tied)
    closest = max(written.closest, deployed.closest)
    return ProductBound(written.compared, closest, *worst)


def _follow(
    program: Program, model: onnx.ModelProto, inputs: Sequence[Tensor], *, optimize: bool
) -> tuple[_Follower, list[NDArray[Any]]]:
    follower = _Follower(program)
    inner, session = inner_values(model, list(follower.judged), inputs, optimize=optimize)
    follower.inner = inner
    with torch.no_grad():
        outputs = follower.run_flat(list(inputs))
    for name, mine, theirs in zip(program.signature.outputs, outputs, session, strict=True):
        check_tail(name, mine.numpy(), theirs)
    return follower, session


class _Follower(Executor):
    """Runs a program, compares its integers and products with the session's, goes on with those."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.inner: Mapping[str, NDArray[Any]] = {}
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        self.products = {
            node.name for node in calls if any(source.target in _WEIGHTS for source in node.all_input_nodes)
        }
        self.judged = self.products | {node.name for node in calls if node.target is _QUANTIZE}
        self.unrounded = {
            node.name: source.name
            for node in calls
            if node.name in self.products and (source := before_rounding(node.args[0])) is not None
        }
        self.kept: dict[str, Tensor] = {}
        self.flips: list[Flips] = []
        self.compared = 0
        self.closest = 0.0

    def after(self, node: fx.Node, value: Any) -> Any:
        """Judge one operator."""
        if node.name in self.unrounded.values():
            self.kept[node.name] = value
        if node.name not in self.judged:
            return value
        theirs = self.inner.get(node.name)
        if theirs is None:
            raise _failure(node, f"{node.name} is not in the ONNX file")
        found = torch.from_numpy(theirs.copy())
        if found.shape != value.shape or found.dtype != value.dtype:
            raise _failure(
                node,
                f"{node.name} is {value.dtype}{list(value.shape)} in the program and "
                f"{found.dtype}{list(found.shape)} in the session",
            )
        if node.name in self.products:
            self._judge_product(node, value, found)
        else:
            self._judge_integers(node, value, found)
        if node.name in self.unrounded.values():
            self.kept[node.name] = found
        return found

    def _judge_product(self, node: fx.Node, mine: Tensor, theirs: Tensor) -> None:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        assert callable(node.target)
        allowed = SUMS * node.target(*_magnitudes(args), **_magnitudes(kwargs))
        if node.name in self.unrounded:
            exact = node.target(self.kept[self.unrounded[node.name]], *args[1:], **kwargs)
            allowed = allowed + (exact - mine).abs().max()
        error = torch.where(mine == theirs, 0.0, (mine - theirs).abs())  # infinities that agree, too
        share = float(torch.where(error == 0, 0.0, error / allowed).max()) if error.numel() else 0.0
        if not share <= 1.0:
            raise _failure(
                node,
                f"{node.name} is {float(error.max()):.3g} away from the session, given equal inputs; "
                f"{share:.3g} times what rounding explains",
            )
        self.compared += 1
        self.closest = max(self.closest, share)

    def _judge_integers(self, node: fx.Node, mine: Tensor, theirs: Tensor) -> None:
        value, scale, zero, *_ = self.fetch_args_kwargs_from_env(node)[0]
        found = flips(value, mine, theirs, float(scale), float(zero))
        if found.steps > 1:
            raise _failure(node, found.said(node.name, KERNEL))
        self.flips.append(found)

    def ties(self) -> bool:
        """Whether all that sets the session apart are ties at run-time quantizations."""
        return bool(self.flips) and not self.unrounded and all(found.ties(KERNEL) for found in self.flips)


def _magnitudes(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.abs, tree)


def _failure(node: fx.Node, message: str) -> ProofError:
    return ProofError(message, node=node.format_node(), source=walk.source(node))

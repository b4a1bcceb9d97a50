"""What a program costs, and what it would cost at other widths.

MACs are per sample at the example's spatial size; parameters count trainable tensors and stored
integers that stand for such, bytes every stored one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch.fx import Node

from fxcompress.analysis.propagate import propagate
from fxcompress.axes.expression import Axis, Dim, leaves
from fxcompress.axes.positions import width
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.cost import MACS, Term
from fxcompress.ops.dimensions.space import Space
from fxcompress.ops.dimensions.table import rule_for
from fxcompress.ops.quantization import Kind, role


@dataclass(frozen=True)
class Cost:
    """MACs per sample, number of parameters, bytes of stored tensors."""

    macs: float
    params: int
    bytes: int


@dataclass(frozen=True)
class Sum:
    """A weighted sum of products of widths, with the constant part folded away."""

    constant: float
    terms: tuple[tuple[float, Term], ...]

    def at(self, widths: Mapping[Axis, int]) -> float:
        return self.constant + sum(
            weight * prod(width(dim, widths) for dim in term) for weight, term in self.terms
        )


@dataclass(frozen=True)
class Price:
    """The exact cost of a program as a function of the widths of its axes."""

    macs: Sum
    params: Sum
    bytes: Sum

    def at(self, widths: Mapping[Axis, int]) -> Cost:
        return Cost(self.macs.at(widths), round(self.params.at(widths)), round(self.bytes.at(widths)))


@dataclass(frozen=True)
class Terms:
    """What costs are sums of: a weight and a product of dimensions for every operator and stored tensor."""

    macs: tuple[tuple[float, Term], ...]
    params: tuple[tuple[float, Term], ...]
    bytes: tuple[tuple[float, Term], ...]


def collect(program: Program, space: Space) -> Terms:
    """Collect the terms of every operator and every stored tensor."""
    samples = samples_of(program, space)
    macs = [
        (1.0 / samples, term)
        for node in program.graph.nodes
        if node in space.values and node.target in MACS
        for term in MACS[node.target](space, node)
    ]
    parameters: list[tuple[float, Term]] = []
    stored: list[tuple[float, Term]] = []
    for node in program.graph.nodes:
        if node.op == "get_attr":
            tensor = walk.tensor(program, node)
            stored.append((float(tensor.element_size()), space.of(node)))
            if is_parameter(program, node):
                parameters.append((1.0, space.of(node)))
    return Terms(tuple(macs), tuple(parameters), tuple(stored))


def is_parameter(program: Program, node: Node) -> bool:
    """Whether a stored tensor is trainable, or holds integers that are dequantized or looked up."""
    tensor = walk.tensor(program, node)
    if isinstance(tensor, torch.nn.Parameter):
        return True
    return not tensor.is_floating_point() and any(_reads_integers(user, node) for user in node.users)


def _reads_integers(user: Node, node: Node) -> bool:
    if str(user.target).startswith("quantized_decomposed.dequantize"):
        return user.args[0] is node
    row = role(user)
    if row is None or row.kind is not Kind.LOOKUP or row.weight is None:
        return False
    return walk.argument(user, row.weight) is node


def price(program: Program, space: Space) -> Price:
    """Return the exact cost as a function of widths."""
    terms = collect(program, space)
    return Price(_folded(terms.macs), _folded(terms.params), _folded(terms.bytes))


def _folded(terms: Iterable[tuple[float, Term]]) -> Sum:
    """Multiply out the axes that can never change; keep the rest as factors."""
    constant, varying = 0.0, []
    for weight, term in terms:
        free: list[Dim] = []
        for dim in term:
            if all(axis.frozen for axis in leaves(dim)):
                weight *= dim.size
            else:
                free.append(dim)
        if free:
            varying.append((weight, tuple(free)))
        else:
            constant += weight
    return Sum(constant, tuple(varying))


def samples_of(program: Program, space: Space) -> int:
    """How many samples the example holds.

    The leading dimension of the first input counts them where it is dynamic, or where it is still the leading
    dimension of an output; else (an image without a batch, say) the example is one sample.
    """
    inputs = [node for node in walk.placeholders(program) if walk.is_tensor(node) and space.of(node)]
    if not inputs:
        return 1
    leading = space.of(inputs[0])[0]
    counting = set(leaves(leading))
    counted = walk.is_symbolic(inputs[0], 0) or any(
        not counting.isdisjoint(leaves(space.of(result)[0]))
        for result in walk.output_values(program)
        if result in space.values and space.of(result)
    )
    return leading.size if counted else 1


def unpriced(program: Program) -> list[Node]:
    """The operators whose work is unknown: they have neither a dimension rule nor a row that counts MACs."""
    return [
        node
        for node in program.graph.nodes
        if node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and walk.is_tensor(node)
        and node.target not in MACS
        and node.target.namespace != "quantized_decomposed"  # rounding, of the size of what it rounds
        and rule_for(node.target) is None
    ]


def cost(program: Program) -> Cost:
    """What the program costs as it is."""
    return price(program, propagate(program)).at({})

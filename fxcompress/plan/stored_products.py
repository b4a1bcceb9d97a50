"""The matrix products with a stored weight: what dynamic and weight-only quantization can work on.

    linear(x, weight, bias), addmm(bias, x, weight), mm(x, weight), matmul(x, weight)

Convolutions are none: their integer kernel for ranges that are found at run time (`ConvInteger`) is slower
than float in ONNX Runtime or missing (ort#12362), and blocks of a convolution's weight have no kernel
anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.quantization import Kind, activations, role
from fxcompress.plan.eligibility import excluded, operand
from fxcompress.plan.quantization_plan import Declined
from fxcompress.plan.tables import lookups, table_fault

SMALLEST = 64 * 64
"""Weights below this many elements stay in float: what is saved is less than what the conversion costs."""

_CONVOLUTIONS = (Kind.CONVOLUTION, Kind.TRANSPOSED)


@dataclass(frozen=True)
class StoredProduct:
    """`x @ matrix + bias` with a stored matrix.

    Args:
        node: the operator.
        source: `x`, `[.., K]`.
        weight: the get_attr node of the matrix.
        rows_are_outputs: the matrix is stored `[N, K]`, as a linear has it; else `[K, N]`.
        bias: the get_attr node of the bias, if there is one.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    rows_are_outputs: bool
    bias: fx.Node | None

    @property
    def parameter(self) -> str:
        """The name of the matrix."""
        return str(self.weight.target)

    @property
    def axis(self) -> int:
        """The dimension of the matrix that counts outputs."""
        return 0 if self.rows_are_outputs else 1


def stored_products(
    program: Program,
    convolution_reason: str,
    exclude: Sequence[str] = (),
    smallest: int = SMALLEST,
    *,
    tables: bool = False,
) -> tuple[list[StoredProduct], list[Declined]]:
    """The products that can be quantized, in graph order, and the operators that stay in float with why.

    Args:
        program: a float32 program.
        convolution_reason: what to say of convolutions.
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
        smallest: elements that a weight must have.
        tables: large tables will have integers of their own, so that a product may share one.
    """
    found: list[StoredProduct] = []
    declined: list[Declined] = []
    for node in program.graph.nodes:
        row = role(node)
        if row is None or row.kind not in (Kind.LINEAR, Kind.MATMUL, Kind.ATTENTION, *_CONVOLUTIONS):
            continue
        if row.kind in _CONVOLUTIONS:
            fault: str | None = convolution_reason
        elif row.kind is Kind.LINEAR:
            fault = _fault(program, node, exclude, smallest)
        else:
            fault = "both factors are activations"
        if fault is None:
            found.append(_product(node))
        else:
            declined.append(Declined(node.name, fault, walk.source(node)))
    return _unshared(program, found, declined, exclude if tables else None)


def _product(node: fx.Node) -> StoredProduct:
    row = role(node)
    weight = operand(node, row.weight if row else None)
    assert row is not None and weight is not None
    bias = operand(node, row.bias)
    return StoredProduct(node, activations(node, row)[0], weight, row.axis == 0, bias)


def _fault(program: Program, node: fx.Node, exclude: Sequence[str], smallest: int) -> str | None:
    """Why a product stays in float."""
    row = role(node)
    assert row is not None
    weight, bias = operand(node, row.weight), operand(node, row.bias)
    if weight is None or weight.op != "get_attr":
        return "its weight is computed, not stored"
    if bias is not None and (bias.op != "get_attr" or walk.value(bias).dim() != 1):
        return "its bias is not a stored vector"
    if any(walk.argument(node, name, 1) != 1 for name in ("alpha", "beta")):
        return "its operands are scaled by alpha or beta"
    source = activations(node, row)[0]
    if walk.value(weight).dim() != 2 or walk.value(source).dim() < 2:
        return "its weight is not a matrix, or its input is a vector"
    if any(walk.dtype(tensor) != torch.float32 for tensor in (node, source, weight)):
        return "it does not compute in float32"
    if source.op == "get_attr":
        return "its input is a parameter"
    if excluded(exclude, node, weight):
        return "excluded by name"
    if walk.value(weight).numel() < smallest:
        return f"its weight has {walk.value(weight).numel()} elements, fewer than the {smallest} that pay"
    if not bool(walk.tensor(program, weight).isfinite().all()):
        return "its weight holds a NaN or an infinity"
    return None


def _unshared(
    program: Program, found: list[StoredProduct], declined: list[Declined], exclude: Sequence[str] | None
) -> tuple[list[StoredProduct], list[Declined]]:
    """Leave products in float whose weight something else reads: a second copy would cost file size."""
    kept: list[StoredProduct] = []
    readers = {product.node for product in found}
    for product in found:
        same = [other for other in found if other.weight is product.weight]
        others = set(product.weight.users) - readers
        rows = set() if exclude is None else set(lookups(product.weight))
        if rows and table_fault(program, product.weight, exclude or ()) is None:
            others -= rows
        if not others and len({other.axis for other in same}) == 1:
            kept.append(product)
            continue
        named = ", ".join(user.name for user in product.weight.users if user is not product.node)
        reason = f"its weight is also read by {named or 'the same operator in another order'}, in float"
        declined.append(Declined(product.node.name, reason, walk.source(product.node)))
    return kept, declined

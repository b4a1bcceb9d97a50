"""Why an operator cannot run in int8: each function returns the reason, or None when it can.

These look at one operator and its weight; whether int8 pays among its neighbours is placement's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.quantization import Kind, Role, activations, rectifier_bounds, role
from fxcompress.targets.target import Target

aten = torch.ops.aten

CONTRACTIONS = (Kind.CONVOLUTION, Kind.TRANSPOSED, Kind.LINEAR)
KEEPS_SCALE = (Kind.LAYOUT, Kind.PAD)


def excluded(patterns: Sequence[str], node: fx.Node, weight: fx.Node | None = None) -> bool:
    """Whether a shell pattern matches the name of an operator, its module's path or its weight's name."""
    names = [node.name, walk.module_path(node), str(weight.target) if weight is not None else ""]
    return any(name and fnmatchcase(name, pattern) for name in names for pattern in patterns)


def is_contraction(node: fx.Node) -> bool:
    """Whether a node is a convolution or linear; a matrix product of two activations is none."""
    row = role(node)
    if row is None or row.kind not in CONTRACTIONS:
        return False
    weight = operand(node, row.weight)
    return not (
        row.kind is Kind.LINEAR and row.bias is None and weight is not None and walk.depends_on_input(weight)
    )


def contraction_fault(program: Program, node: fx.Node, row: Role, target: Target) -> str | None:
    """Say why a convolution or linear stays in float."""
    if row.kind not in target.kernels:
        return target.float_reasons.get(row.kind, "no integer kernel")
    weight = operand(node, row.weight)
    if weight is None or weight.op != "get_attr":
        return "its weight is computed, not stored"
    bias = operand(node, row.bias)
    if bias is not None and bias.op != "get_attr":
        return "its bias is computed, not stored"
    if bias is not None and walk.value(bias).dim() != 1:
        return "its bias is not a vector"
    if row.kind is Kind.LINEAR and walk.value(weight).dim() != 2:
        return "its weight is not a matrix"
    source = activations(node, row)[0]
    if any(walk.dtype(tensor) != torch.float32 for tensor in (node, source, weight)):
        return "it does not compute in float32"
    if not bool(walk.tensor(program, weight).isfinite().all()):
        return "its weight holds a NaN or an infinity"
    return _convolution_fault(node, target) if row.kind is Kind.CONVOLUTION else None


def _convolution_fault(node: fx.Node, target: Target) -> str | None:
    if walk.argument(node, "transposed", False):
        return target.float_reasons.get(Kind.TRANSPOSED, "no integer kernel")
    groups = walk.argument(node, "groups", 1)
    weight = operand(node, "weight")
    if weight is None or walk.value(weight).dim() != walk.value(node).dim():
        return "its input has no batch dimension"
    width = walk.hint_shape(weight)[1]
    if groups > 1 and 1 < width < target.narrowest_group:
        return f"{width} input channels per group: the integer kernel is slower than the float one"
    return None


def movement_fault(node: fx.Node, row: Role) -> str | None:
    """Say why an operator that moves or combines numbers has no integer form with these arguments."""
    sources = activations(node, row)
    if any(not walk.is_tensor(source) or walk.dtype(source) != torch.float32 for source in sources):
        return "it does not compute in float32"
    if row.kind in (Kind.ADD, Kind.MULTIPLY):
        return _pair_fault(node, row, sources)
    if any(source.op == "get_attr" for source in sources):
        return "an operand is a parameter"
    if row.kind is Kind.AVERAGE and walk.argument(node, "divisor_override") is not None:
        return "the divisor is not the size of the window"
    if row.kind is Kind.GLOBAL_AVERAGE:
        return None if is_global_average(node) else "it does not average over exactly height and width"
    if row.kind is Kind.PAD:
        constant = walk.argument(node, "mode", "constant") == "constant"
        return None if constant and not walk.argument(node, "value") else "it does not pad with zeros"
    return None


def _pair_fault(node: fx.Node, row: Role, sources: list[fx.Node]) -> str | None:
    if len(sources) != 2:
        return "an operand is a number"
    if any(source.op == "get_attr" for source in sources):
        return "an operand is a parameter"
    if row.kind is Kind.ADD and walk.argument(node, "alpha", 1) != 1:
        return "an operand is scaled by alpha"
    return None


def is_global_average(node: fx.Node) -> bool:
    """Whether a mean or adaptive pooling averages an image `[N, C, H, W]` to one number per channel."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or walk.value(source).dim() != 4:
        return False
    if node.target is aten.adaptive_avg_pool2d.default:
        return all(size == 1 for size in walk.argument(node, "output_size"))
    dims = walk.argument(node, "dim")
    return (
        dims is not None
        and sorted(dim % 4 for dim in dims) == [2, 3]
        and walk.argument(node, "dtype") is None
    )


def absorbable(node: fx.Node) -> fx.Node | None:
    """Return the rectifier that is the only reader of a node and clamps at zero from below, None if there
    is none.
    """
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    row = role(reader)
    if row is None or row.kind is not Kind.RECTIFY:
        return None
    bounds = rectifier_bounds(reader)
    return reader if bounds is not None and bounds[0] == 0.0 and bounds[1] > 0.0 else None


def operand(node: fx.Node, name: str | None) -> fx.Node | None:
    """Return an operand by its schema name, None where it is absent or not a node."""
    found = walk.argument(node, name) if name is not None else None
    return found if isinstance(found, fx.Node) else None


def is_batched(node: fx.Node, row: Role) -> bool:
    """Whether a linear is lowered to a matrix product and an addition, and stays so in the runtime.

    `linear` and `addmm` on two dimensions are a Gemm, and so is, in the runtime, a product and a bias with
    static dimensions only.
    """
    if row.kind is not Kind.LINEAR:
        return False
    sizes = walk.shape(activations(node, row)[0])
    if row.bias is None or len(sizes) == 2:
        return row.bias is None
    return operand(node, row.bias) is None or any(isinstance(size, torch.SymInt) for size in sizes)

"""Residual blocks: additions `x + f(x)` of which the second term can be left out.

A block is found by what the operators do, not by what modules are called: an addition of two tensors of one
shape, one of which is computed from the other. The other is the *identity* `x`, and the block is all that
only `f(x)` needs. Where neither term is computed from the other (a projection on the shortcut, two parallel
branches), there is no term that could go, and the addition is declined with the reason. So it is where the
branch contracts nothing: `x + 0.0447 x**3` inside a GELU is a formula, not a block of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.consumption import consumed

aten = torch.ops.aten

_SIZES = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
"""Values that say how large a tensor is, not what is in it."""


@dataclass(frozen=True)
class Block:
    """One residual block.

    Args:
        name: the addition's node name.
        identity: the position of `x` among the addition's operands, 0 or 1.
        module: the qualified name of the module that adds, `""` for the model itself.
        source: the user's line, where known.
        nodes: names of the operators that nothing but `f(x)` needs, in graph order.
    """

    name: str
    identity: int
    module: str
    source: str | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class NoBlock:
    """An addition of two tensors that is no residual block, and why."""

    name: str
    reason: str
    source: str | None


def residual_blocks(program: Program) -> tuple[tuple[Block, ...], tuple[NoBlock, ...]]:
    """Every block of a program in graph order, and the additions of computed tensors that are none."""
    found: list[Block] = []
    declined: list[NoBlock] = []
    ancestry = _Ancestry(program)
    for node in program.graph.nodes:
        if node.target is not aten.add.Tensor or not _adds_tensors(node):
            continue
        judged = _judge(program, node, ancestry)
        if isinstance(judged, Block):
            found.append(judged)
        else:
            declined.append(NoBlock(node.name, judged, walk.source(node)))
    return tuple(found), tuple(declined)


def terms(node: Node) -> tuple[Node, Node]:
    """The two operands of an addition of tensors."""
    left, right = node.args[:2]
    assert isinstance(left, Node) and isinstance(right, Node)
    return left, right


def _adds_tensors(node: Node) -> bool:
    """Whether both terms are values on the way; a bias or a constant is no branch."""
    return all(
        isinstance(term, Node) and term.op != "get_attr" and walk.is_tensor(term) for term in node.args[:2]
    )


def _judge(program: Program, node: Node, ancestry: _Ancestry) -> Block | str:
    left, right = terms(node)
    if left is right:
        return "both terms are one tensor"
    if node.kwargs.get("alpha", 1) != 1:
        return f"one term is scaled by alpha={node.kwargs['alpha']}"
    if not _same_shape(left, node) or not _same_shape(right, node):
        return f"one term is broadcast: {left.name} and {right.name} differ in shape"
    if ancestry.computed_from(right, left):
        identity, branch = 0, right
    elif ancestry.computed_from(left, right):
        identity, branch = 1, left
    else:
        return (
            f"neither term is computed from the other: {left.name} ({_called(left)}) and {right.name} "
            f"({_called(right)})"
        )
    kept = (left, right)[identity]
    if walk.dtype(kept) != walk.dtype(node):
        return f"the sum is {walk.dtype(node)} and {kept.name} is {walk.dtype(kept)}"
    if node in walk.output_values(program) and (
        kept.op == "placeholder" or kept in walk.output_values(program)
    ):
        return "without its branch an output of the model would be another output or an input"
    exclusive = _only_for(branch, node)
    if not exclusive:
        return f"{branch.name} is needed elsewhere: leaving it out of the sum saves nothing"
    if not any(consumed(inner) for inner in exclusive):
        return f"nothing is contracted on the way to {branch.name}: a formula, not a block of layers"
    names = tuple(inner.name for inner in exclusive)
    return Block(node.name, identity, walk.module_path(node), walk.source(node), names)


def _called(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0] if node.op == "call_function" else node.op


def _same_shape(term: Node, total: Node) -> bool:
    one, other = walk.shape(term), walk.shape(total)
    return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))


def _same(left: int | torch.SymInt, right: int | torch.SymInt) -> bool:
    """Whether two sizes are equal for every input."""
    if isinstance(left, torch.SymInt) and isinstance(right, torch.SymInt):
        return bool(left.node.expr == right.node.expr)
    return not isinstance(left, torch.SymInt) and not isinstance(right, torch.SymInt) and left == right


def _only_for(branch: Node, reader: Node) -> list[Node]:
    """The operators that nobody would read any more if `reader` did not read `branch`, in graph order."""
    gone: set[Node] = set()
    for node in reversed(branch.graph.nodes):
        readers = set(node.users) - ({reader} if node is branch else set())
        unread = readers <= gone and (node is branch or bool(readers))
        if node.op == "call_function" and unread:
            gone.add(node)
    return sorted(gone)


class _Ancestry:
    """From which tensors' values each tensor is computed; sizes do not count.

    A set of nodes is an integer with a bit for each, which keeps graphs of thousands of nodes cheap.
    """

    def __init__(self, program: Program) -> None:
        self.place = {node: place for place, node in enumerate(program.graph.nodes)}
        self.before: dict[Node, int] = {}
        for node in program.graph.nodes:
            mask = 0
            for origin in node.all_input_nodes:
                if origin.op != "get_attr" and not isinstance(origin.meta.get("val"), _SIZES):
                    mask |= self.before[origin] | 1 << self.place[origin]
            self.before[node] = mask

    def computed_from(self, node: Node, origin: Node) -> bool:
        """Whether the value of `node` depends on that of `origin`."""
        return bool(self.before[node] >> self.place[origin] & 1)

"""What can be read off a node, and what can be proven about its shape, symbolic sizes included."""

from __future__ import annotations

import torch
from torch.fx import Node


def operand(node: Node, index: int = 0) -> Node | None:
    """Return the node at a position of a call, or None where there is no argument or a constant."""
    found = node.args[index] if index < len(node.args) else None
    return found if isinstance(found, Node) else None


def value_of(node: Node) -> torch.Tensor | None:
    """Return the fake tensor that a node computes, or None for a size, a tuple or nothing."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def same_size(left: int | torch.SymInt, right: int | torch.SymInt) -> bool:
    """Whether two sizes are equal for every input: equal numbers, or the same symbolic expression."""
    if isinstance(left, torch.SymInt) and isinstance(right, torch.SymInt):
        return bool(left.node.expr == right.node.expr)
    return not isinstance(left, torch.SymInt) and not isinstance(right, torch.SymInt) and left == right


def same_sizes(left: torch.Size, right: torch.Size) -> bool:
    """Whether two shapes have the same rank and provably the same sizes."""
    return len(left) == len(right) and all(same_size(a, b) for a, b in zip(left, right, strict=True))

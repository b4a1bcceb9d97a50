"""Which integers each tensor has where the kernels of one target want different ones.

A tensor is quantized once, so all kernels that read its integers, and the one that can write nothing else,
must want the same scheme (:attr:`~fxcompress.targets.target.Kernel.activations`). The first in graph order
decides; an operator that wants another stays in float, and everything is placed again without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from torch import fx

from fxcompress.graph.program import Program
from fxcompress.ops.quantization import Kind, Role, activations, role
from fxcompress.plan.eligibility import KEEPS_SCALE, is_batched
from fxcompress.plan.placement import Placement, place
from fxcompress.targets.target import Scheme, Target

FOLLOWS = (*KEEPS_SCALE, Kind.RECTIFY, Kind.HARD_SIGMOID)
"""What has the scheme of what it reads, or is a part of what makes it."""


def place_in_agreement(
    program: Program,
    target: Target,
    exclude: Sequence[str] = (),
    integers: AbstractSet[str] | None = None,
    spared: AbstractSet[str] = frozenset(),
) -> Placement:
    """Do what :func:`~fxcompress.plan.placement.place` does, so that every tensor has one scheme.

    `Placement.schemes` holds those that are not the target's, by the tensor that owns the scale.
    """
    clashing: dict[str, str] = {}
    while True:
        placement = place(program, target, exclude, integers, {*spared, *clashing})
        placement.declined.update({name: why for name, why in clashing.items() if name in placement.declined})
        found = {} if target.uniform else _agree(program, target, placement)
        if not found:
            return placement
        clashing |= found


def _agree(program: Program, target: Target, placement: Placement) -> dict[str, str]:
    """State the scheme of every tensor in the placement; return what cannot have it, with the reason.

    What clashes runs in float in the end, so it decides nothing; nor is it tried again where what it clashed
    with turns out to run in float as well.
    """
    decided: dict[str, tuple[Scheme, str]] = {}
    clashes: dict[str, str] = {}
    for node in program.graph.nodes:
        row = role(node)
        if row is None or node.name not in placement.kernels or row.kind in FOLLOWS:
            continue
        wanted = target.activation_scheme(row.kind, batched=is_batched(node, row))
        roots = dict.fromkeys(_tensors(node, row, target, placement))
        other = next((root for root in roots if decided.get(root, (wanted, ""))[0] != wanted), None)
        if other is None:
            decided |= {root: (wanted, node.name) for root in roots if root not in decided}
        else:
            scheme, name = decided[other]
            clashes[node.name] = f"it wants {other} as {wanted}, which {name} has as {scheme}"
    schemes = {root: scheme for root, (scheme, _) in decided.items()}
    placement.schemes = {root: scheme for root, scheme in schemes.items() if scheme != target.activations}
    return clashes


def _tensors(node: fx.Node, row: Role, target: Target, placement: Placement) -> Iterator[str]:
    """The owners of the scales that an operator reads, and of the one that it cannot but write."""
    for source in activations(node, row):
        root = placement.owner_read(source)
        if root is not None:
            yield root
    if target.kernel(row.kind, batched=is_batched(node, row)).writes_integers:
        made = node
        while made.name not in placement.tensors and len(made.users) == 1:
            made = next(iter(made.users))  # what it absorbs
        if made.name in placement.tensors:
            yield placement.tensors[made.name]

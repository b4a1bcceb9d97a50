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
from fxcompress.ops.quantization import Role, activations, role
from fxcompress.plan.eligibility import KEEPS_SCALE, is_batched
from fxcompress.plan.placement import Placement, place
from fxcompress.targets.target import Scheme, Target


def place_in_agreement(
    program: Program,
    target: Target,
    exclude: Sequence[str] = (),
    integers: AbstractSet[str] | None = None,
) -> Placement:
    """Do what :func:`~fxcompress.plan.placement.place` does, so that every tensor has one scheme.

    `Placement.schemes` holds those that are not the target's, by the tensor that owns the scale.
    """
    spared: dict[str, str] = {}
    while True:
        placement = place(program, target, (*exclude, *spared), integers)
        placement.declined.update({name: why for name, why in spared.items() if name in placement.declined})
        clashes = {} if target.uniform else _agree(program, target, placement)
        if not clashes:
            return placement
        spared |= clashes


def _agree(program: Program, target: Target, placement: Placement) -> dict[str, str]:
    """State the scheme of every tensor in the placement; return what cannot have it, with the reason."""
    decided: dict[str, tuple[Scheme, str]] = {}
    clashes: dict[str, str] = {}
    for node in program.graph.nodes:
        row = role(node)
        if row is None or not placement.kernels.get(node.name) or row.kind in KEEPS_SCALE:
            continue
        wanted = target.activation_scheme(row.kind, batched=is_batched(node, row))
        for root in dict.fromkeys(_tensors(node, row, target, placement)):
            scheme, name = decided.setdefault(root, (wanted, node.name))
            if scheme != wanted:
                clashes[node.name] = f"it wants {root} as {wanted}, which {name} has as {scheme}"
    placement.schemes = {
        root: scheme for root, (scheme, _) in decided.items() if scheme != target.activations
    }
    return clashes


def _tensors(node: fx.Node, row: Role, target: Target, placement: Placement) -> Iterator[str]:
    """The owners of the scales that an operator reads, and of the one that it cannot but write."""
    for source in activations(node, row):
        root = _read(source, placement)
        if root is not None:
            yield root
    if target.kernel(row.kind, batched=is_batched(node, row)).writes_integers:
        made = node
        while made.name not in placement.tensors and len(made.users) == 1:
            made = next(iter(made.users))  # what it absorbs
        if made.name in placement.tensors:
            yield placement.tensors[made.name]


def _read(source: fx.Node, placement: Placement) -> str | None:
    """The owner of the scale that a tensor is read by, perhaps through layout that has no pair of its own."""
    while source.name not in placement.tensors:
        row = role(source)
        if row is None or row.kind not in KEEPS_SCALE or source.name not in placement.kernels:
            return None
        source = activations(source, row)[0]
    return placement.tensors[source.name]

"""What changed between two files: tensors, operators, sizes. Names are the link; they survive every pass."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxcompress.report import tables, units
from fxcompress.report.contents import Contents, Stored

INTEGER_SUFFIXES = ("_int8", "_int32")
"""What `passes.quantize_tensors` appends to the name of a weight or bias that it stores as integers."""


@dataclass(frozen=True)
class Difference:
    """B against A.

    Attributes:
        reshaped: tensors of another shape or dtype, as (before, after).
        revalued: tensors of the same type with other values.
        operators: operator to (how many in A, how many in B), where they differ; empty across kinds of file.
        nodes_added, nodes_removed: names of nodes; empty across kinds of file.
        costs: measure to (A, B).
    """

    reshaped: Mapping[str, tuple[Stored, Stored]]
    added: Mapping[str, Stored]
    removed: Mapping[str, Stored]
    revalued: tuple[str, ...]
    operators: Mapping[str, tuple[int, int]]
    nodes_added: tuple[str, ...]
    nodes_removed: tuple[str, ...]
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether the two are the same in everything compared here."""
        named = (self.reshaped, self.added, self.removed, self.revalued, self.operators)
        return not any(named) and not self.nodes_added and not self.nodes_removed

    def to_dict(self) -> dict[str, Any]:
        """The same for a machine."""
        return {
            "equal": self.empty,
            "costs": {name: {"a": a, "b": b} for name, (a, b) in self.costs.items()},
            "tensors": {
                "changed": {name: {"a": str(a), "b": str(b)} for name, (a, b) in self.reshaped.items()},
                "values_changed": list(self.revalued),
                "added": {name: str(tensor) for name, tensor in self.added.items()},
                "removed": {name: str(tensor) for name, tensor in self.removed.items()},
            },
            "operators": {name: {"a": a, "b": b} for name, (a, b) in self.operators.items()},
            "nodes": {"added": list(self.nodes_added), "removed": list(self.nodes_removed)},
        }


def compare(a: Contents, b: Contents, costs: Mapping[str, tuple[float, float]] | None = None) -> Difference:
    """The difference of two contents; operators and nodes are only compared within one kind of file."""
    both = [name for name in a.tensors if name in b.tensors]
    reshaped = {name: (a.tensors[name], b.tensors[name]) for name in both if _type(a, name) != _type(b, name)}
    twins = _integer_twins(a, b)
    reshaped |= {name: (a.tensors[name], b.tensors[twin]) for name, twin in twins.items()}
    counts_a, counts_b = a.by_operator(), b.by_operator()
    same_kind = a.kind == b.kind
    operators = {
        name: (counts_a.get(name, 0), counts_b.get(name, 0))
        for name in dict.fromkeys([*counts_a, *counts_b])
        if same_kind and counts_a.get(name, 0) != counts_b.get(name, 0)
    }
    return Difference(
        reshaped=reshaped,
        added=_without(b.tensors, {*a.tensors, *twins.values()}),
        removed=_without(a.tensors, {*b.tensors, *twins}),
        revalued=tuple(
            name for name in both if name not in reshaped and a.tensors[name].digest != b.tensors[name].digest
        ),
        operators=operators,
        nodes_added=tuple(name for name in b.operators if same_kind and name not in a.operators),
        nodes_removed=tuple(name for name in a.operators if same_kind and name not in b.operators),
        costs={"tensor bytes": (a.bytes, b.bytes), "stored values": (a.elements, b.elements)}
        | dict(costs or {}),
    )


def _integer_twins(a: Contents, b: Contents) -> dict[str, str]:
    """What A stores in float and B in integers under the name that quantization gives them."""
    gone = [name for name in a.tensors if name not in b.tensors]
    twins = ((name, f"{name}{suffix}") for name in gone for suffix in INTEGER_SUFFIXES)
    return {name: twin for name, twin in twins if twin in b.tensors and twin not in a.tensors}


def _without(tensors: Mapping[str, Stored], names: Set[str]) -> dict[str, Stored]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _type(contents: Contents, name: str) -> tuple[tuple[int, ...], str]:
    return contents.tensors[name].shape, contents.tensors[name].dtype


def view(difference: Difference, rows: int = tables.MAX_ROWS) -> RenderableType:
    """Costs, changed tensors, added and removed ones, operators; long lists are cut with a count."""
    if difference.empty:
        return Text("The two are the same: tensors, values and operators.")
    parts: list[RenderableType] = [_costs(difference)]
    if difference.reshaped:
        changed = {name: (str(a), str(b)) for name, (a, b) in difference.reshaped.items()}
        parts.append(_pairs("Tensors of another type", changed, rows))
    for title, found in (("Tensors only in A", difference.removed), ("Tensors only in B", difference.added)):
        if found:
            parts.append(_named(title, {name: str(tensor) for name, tensor in found.items()}, rows))
    if difference.revalued:
        parts.append(Text(f"{len(difference.revalued)} tensors of the same type hold other values"))
    if difference.operators:
        counts = {name: (str(a), str(b)) for name, (a, b) in difference.operators.items()}
        parts.append(_pairs("Operators", counts, rows))
    if difference.nodes_added or difference.nodes_removed:
        added, removed = len(difference.nodes_added), len(difference.nodes_removed)
        parts.append(Text(f"{removed} nodes only in A, {added} only in B; --json names them"))
    return Group(*parts)


def _costs(difference: Difference) -> RenderableType:
    made = tables.table("Costs", "", "A", "B", "B / A", right=("A", "B", "B / A"))
    for name, (a, b) in difference.costs.items():
        form = units.size if "bytes" in name or "file" in name else units.count
        made.add_row(name, form(a), form(b), units.ratio(b / a if a else None))
    return made


def _pairs(title: str, found: Mapping[str, tuple[str, str]], rows: int) -> RenderableType:
    made = tables.table(title, "name", "A", "B")
    for name, (a, b) in list(found.items())[:rows]:
        made.add_row(name, a, b)
    if len(found) > rows:
        made.add_row(f"and {len(found) - rows} more", "", "")
    return made


def _named(title: str, found: Mapping[str, str], rows: int) -> RenderableType:
    made = tables.table(title, "name", "type")
    for name, kind in list(found.items())[:rows]:
        made.add_row(name, kind)
    if len(found) > rows:
        made.add_row(f"and {len(found) - rows} more", "")
    return made

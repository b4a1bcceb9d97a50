"""What `fxcompress inspect` shows of a program or an ONNX model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxcompress.analysis.cost import cost
from fxcompress.analysis.groups import Analysis
from fxcompress.analysis.groups import Group as ChannelGroup
from fxcompress.analysis.prunability import Prunability, Reach, prunability
from fxcompress.graph.program import Program
from fxcompress.report import tables, units
from fxcompress.report.contents import Contents
from fxcompress.report.report import FrozenEntry, Reachable
from fxcompress.report.report import Prunability as ReachEntry
from fxcompress.runtime.inspection import ExecutedOp


def program_view(program: Program, analysis: Analysis, contents: Contents, *, graph: bool) -> RenderableType:
    """The listing of a program (where asked for), its costs, groups, frozen axes and notes.

    Args:
        program: as the user knows it.
        analysis: of what pruning works on, with over-tied widths loosened.
        contents: of the program.
        graph: list the graph too.
    """
    parts: list[RenderableType] = [Text(str(program))] if graph else []
    found = prunability(analysis)
    parts += [_program_facts(program, contents), tables.prunability(reach(found)), groups(analysis)]
    if found.obstacles:
        parts.append(tables.frozen(frozen_entries(found)))
    parts += [Text(f"note: {note}") for note in program.notes]
    parts += [Text(f"history: {line}") for line in program.history]
    return Group(*parts)


def program_dict(program: Program, analysis: Analysis, contents: Contents) -> dict[str, Any]:
    """The same for a machine; the listing is text under `graph`."""
    price = cost(program)
    found = prunability(analysis)
    return contents.to_dict() | {
        "graph": str(program),
        "cost": {"macs": price.macs, "params": price.params, "bytes": price.bytes},
        "groups": [
            {"name": group.name, "size": group.size, "members": _members(group)} for group in analysis.groups
        ],
        "prunability": asdict(reach(found)),
        "frozen": [asdict(entry) for entry in frozen_entries(found)],
        "notes": list(program.notes),
        "history": list(program.history),
    }


def frozen_entries(found: Prunability) -> tuple[FrozenEntry, ...]:
    """The frozen axes, costliest first, as the report holds them."""
    return tuple(
        FrozenEntry(
            item.axis,
            item.size,
            item.reason,
            item.source,
            item.operator,
            item.params,
            round(item.macs),
            item.members,
        )
        for item in found.obstacles
    )


def reach(found: Prunability) -> ReachEntry:
    """What pruning can reach, as the report holds it."""
    return ReachEntry(_reachable(found.params), _reachable(found.macs))


def _reachable(found: Reach) -> Reachable:
    return Reachable(round(found.total), round(found.prunable), round(found.removable))


def _members(group: ChannelGroup) -> list[str]:
    """The stored dimensions of a group; parts of one tensor share those that were not taken apart."""
    return list(dict.fromkeys(str(member) for member in group.members))


def groups(analysis: Analysis, rows: int = 40) -> RenderableType:
    """The channel groups: size and the parameters that shrink together."""
    made = tables.table(f"Groups ({len(analysis.groups)})", "group", "size", "members", right=("size",))
    for group in analysis.groups[:rows]:
        others = _members(group)[1:]
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        made.add_row(group.name, str(group.size), shown)
    if len(analysis.groups) > rows:
        made.add_row(f"and {len(analysis.groups) - rows} more", "", "--json lists them")
    return made


def _program_facts(program: Program, contents: Contents) -> RenderableType:
    price = cost(program)
    made = tables.table("Program", "", "")
    made.show_header = False
    _signature_rows(made, contents)
    made.add_row("parameters", units.count(price.params))
    made.add_row("stored values", units.count(contents.elements))
    made.add_row("MACs per sample", units.count(price.macs))
    made.add_row("tensor bytes", units.size(price.bytes))
    made.add_row("operators", _counted(contents.by_operator()))
    return made


def onnx_view(contents: Contents, executed: Sequence[ExecutedOp], file_bytes: int) -> RenderableType:
    """An ONNX file: signature, sizes, operators as written and as the runtime executes them."""
    made = tables.table("ONNX model", "", "")
    made.show_header = False
    _signature_rows(made, contents)
    for name, value in contents.facts.items():
        made.add_row(name, value)
    made.add_row("file", units.size(file_bytes))
    made.add_row("initializers", f"{units.size(contents.bytes)} in {len(contents.tensors)} tensors")
    made.add_row("8-bit share", f"{100 * contents.integer_share:.1f} % of their bytes")
    return Group(made, _operators(contents, executed))


def onnx_dict(contents: Contents, executed: Sequence[ExecutedOp], file_bytes: int) -> dict[str, Any]:
    """The same for a machine."""
    return contents.to_dict() | {
        "file_bytes": file_bytes,
        "executed": [
            {"operator": _executed_name(op), "name": op.name, "integer": op.integer} for op in executed
        ],
    }


def _operators(contents: Contents, executed: Sequence[ExecutedOp]) -> RenderableType:
    written = tables.table("Operators as written", "operator", "nodes", right=("nodes",))
    for name, times in contents.by_operator().items():
        written.add_row(name, str(times))
    runs = tables.table("Operators as executed", "operator", "nodes", "8-bit", right=("nodes", "8-bit"))
    counted = Counter(_executed_name(op) for op in executed)
    integer = Counter(_executed_name(op) for op in executed if op.integer)
    for name, times in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        runs.add_row(name, str(times), str(integer[name] or ""))
    return Group(written, runs)


def _executed_name(op: ExecutedOp) -> str:
    return op.op_type if op.domain in ("", "ai.onnx") else f"{op.domain}.{op.op_type}"


def _signature_rows(made: Any, contents: Contents) -> None:
    for name, kind in contents.inputs.items():
        made.add_row("input", f"{name}: {kind}")
    for name, kind in contents.outputs.items():
        made.add_row("output", f"{name}: {kind}")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{times} {name}" for name, times in counts.items())

"""Give the layers that read one table a copy each, so that their widths are no longer tied through it.

    cos = cos(positions * inv_freq);  q0 * cos;  q1 * cos
    =>  q0 * cos(positions * inv_freq_0);  q1 * cos(positions * inv_freq_1)

A *table* is a stored tensor that is not trained and what is computed from such tensors, from positions and
from sizes alone: rotary tables, slopes, masks. A reader is whatever else reads one. Every reader is first
given a copy of its own; readers whose copies turn out to have the same axes then share one, and where all do,
nothing is copied.

Copies may be cut differently, and then they are no longer positions of one tensor: a plan states them under
names of their own. For a trained table that also means that its copies are trained apart, which is why it is
opt-in (`trainable=True`: position biases that all layers share).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from fxcompress.analysis.propagate import propagate
from fxcompress.axes.expression import Axis, leaves
from fxcompress.graph import edit, walk
from fxcompress.graph.origins import Origin
from fxcompress.graph.program import Program
from fxcompress.ops.consumption import consumed
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.passes.fold_parameters import STATEFUL

Labels: TypeAlias = dict[tuple[str, str], int]
"""By reader and stored table, which copy of the table the reader has."""
Copies: TypeAlias = dict[str, tuple[str, int]]
"""By name of a copy, the table and the label it was made for."""


@dataclass(frozen=True)
class CopySharedTables:
    """table read by several layers => one copy per layer, where that loosens a width.

    Args:
        trainable: copy trained tables too; the copies are then trained apart.
        max_bytes: of what one copy stores and computes; larger tables stay shared.
    """

    trainable: bool = False
    max_bytes: int = 1 << 22

    @property
    def name(self) -> str:
        """The pass with its options, as a plan writes it down."""
        return "copy-shared-tables(trainable)" if self.trainable else "copy-shared-tables"

    def run(self, program: Program) -> Outcome:
        """Return a program in which loosely coupled readers have copies of their own, and their origins."""
        tables = _Tables(program, self.trainable)
        declined = [
            Decline(name, f"a copy takes {size} bytes, more than {self.max_bytes}")
            for name in tables.shared()
            if (size := tables.bytes(name)) > self.max_bytes
        ]
        shared = [name for name in tables.shared() if name not in {item.site for item in declined}]
        if not shared:
            return Outcome(program, (), tuple(declined))
        alone: Labels = {
            (reader.name, name): number
            for number, (reader, values) in enumerate(tables.readers().items())
            for name in shared
            if any(name in tables.stored[value] for value in values)
        }
        labels = _joined(alone, *self._copied(program, alone))
        loose = {name for name in shared if len({labels[key] for key in labels if key[1] == name}) > 1}
        declined += [
            Decline(name, "its readers have one width anyhow") for name in shared if name not in loose
        ]
        if not loose:
            return Outcome(program, (), tuple(declined))
        result, copies = self._copied(
            program, {key: label for key, label in labels.items() if key[1] in loose}
        )
        result.origins = result.origins.adding(
            self.name, {name: Origin(of) for name, (of, _) in copies.items()}
        )
        counts = Counter(of for of, _ in copies.values())
        return Outcome(
            result, tuple(f"{of}: {count} copies" for of, count in counts.items()), tuple(declined)
        )

    def _copied(self, program: Program, labels: Labels) -> tuple[Program, Copies]:
        """A program in which every label of a stored table has a copy of it, read as the labels say."""
        result = program.copy()
        tables = _Tables(result, self.trainable)
        stored = {str(node.target): node for node in walk.tensor_nodes(result)}
        made: dict[tuple[str, int], Node] = {}
        for name, label in dict.fromkeys((name, label) for (_, name), label in labels.items()):
            tensor, count = walk.tensor(result, name), sum(of == name for of, _ in made)
            trainable = isinstance(tensor, torch.nn.Parameter)
            last = stored[name] if not count else [node for (of, _), node in made.items() if of == name][-1]
            node = edit.add_tensor(result, f"{name}_{count}", tensor.detach().clone(), trainable, last)
            walk.tensor(result, node).requires_grad_(tensor.requires_grad)
            made[name, label] = node
        again: dict[tuple[Node, tuple[tuple[str, int], ...]], Node] = {}
        for reader, values in tables.readers().items():
            own = {name: label for (site, name), label in labels.items() if site == reader.name}
            for value in values:
                edit.replace_uses(value, _recomputed(tables, value, own, made, again), only=[reader])
        edit.tidy(result)
        return result, {str(node.target): key for key, node in made.items()}


def _recomputed(
    tables: _Tables,
    value: Node,
    own: Mapping[str, int],
    made: Mapping[tuple[str, int], Node],
    again: dict[tuple[Node, tuple[tuple[str, int], ...]], Node],
) -> Node:
    """A table computed from the copies that a reader has; itself where it comes from none of them."""
    used = tuple((name, own[name]) for name in sorted(tables.stored.get(value, ())) if name in own)
    if not used:
        return value
    if value.op == "get_attr":
        return made[used[0]]
    if (value, used) not in again:

        def source(node: Node) -> Node:
            return _recomputed(tables, node, own, made, again)

        args, kwargs = map_arg(value.args, source), map_arg(value.kwargs, source)
        node = edit.call_before(value, value.target, args, kwargs, name=value.name)  # type: ignore[arg-type]
        edit.annotate(node)
        again[value, used] = node
    return again[value, used]


def _joined(alone: Labels, trial: Program, copies: Copies) -> Labels:
    """One label for the readers whose copies of a stored tensor turned out to have the same free axes."""
    space = propagate(trial)
    axes: dict[tuple[str, int], tuple[tuple[Axis | None, ...], ...]] = {}
    for node in walk.tensor_nodes(trial):
        if str(node.target) in copies:
            axes[copies[str(node.target)]] = tuple(
                tuple(None if axis.frozen else axis for axis in leaves(dim)) for dim in space.of(node)
            )
    first: dict[tuple[str, object], int] = {}
    return {
        (reader, name): first.setdefault((name, axes[name, label]), label)
        for (reader, name), label in alone.items()
    }


class _Tables:
    """The tables of a program, as they come from stored tensors, and who reads them.

    Args:
        program: what is read.
        trainable: whether trained tensors count.
    """

    def __init__(self, program: Program, trainable: bool) -> None:
        self.program, self.trainable = program, trainable
        self.stored: dict[Node, frozenset[str]] = {}
        """Each table with the names of the stored tensors that it comes from."""
        self._plain: set[Node] = set()
        self._fed: set[Node] = set()
        for node in program.graph.nodes:
            self._visit(node)

    def _visit(self, node: Node) -> None:
        """Sort a node: a table, a plain value (sizes, positions, whole numbers), or neither."""
        if node.op == "get_attr" and self._is_table(node):
            self.stored[node] = frozenset((str(node.target),))
        elif node.op in ("get_attr", "placeholder"):
            if walk.is_tensor(node) and not walk.dtype(node).is_floating_point:
                self._plain.add(node)
                self._fed |= {node} if node.op == "placeholder" else set()
        elif node.op == "call_function":
            sources = node.all_input_nodes
            if node.target is torch.ops.aten.sym_size.int:
                self._plain.add(node)
                return
            self._fed |= {node} if not self._fed.isdisjoint(sources) else set()
            if all(source in self._plain for source in sources):
                self._plain.add(node)
            elif walk.is_tensor(node) and all(item in self._plain or item in self.stored for item in sources):
                found = frozenset[str]().union(*(self.stored.get(source, ()) for source in sources))
                trained = any(self._trained(name) for name in found)
                if not trained or not (consumed(node) or node in self._fed):
                    self.stored[node] = found

    def _is_table(self, node: Node) -> bool:
        """Whether a stored tensor is a table; running statistics and weights are none."""
        if not walk.dtype(node).is_floating_point or any(user.target in STATEFUL for user in node.users):
            return False
        if not self._trained(str(node.target)):
            return True
        return self.trainable and not any(consumed(user) for user in node.users)

    def _trained(self, name: str) -> bool:
        return isinstance(walk.tensor(self.program, name), torch.nn.Parameter)

    def readers(self) -> dict[Node, list[Node]]:
        """Every node that reads tables and is none itself, in graph order, with the tables it reads."""
        found: dict[Node, list[Node]] = {}
        for node in self.program.graph.nodes:
            values = [source for source in node.all_input_nodes if source in self.stored]
            if values and node not in self.stored:
                found[node] = values
        return found

    def shared(self) -> list[str]:
        """The stored tables with several readers."""
        counts = Counter(
            name
            for values in self.readers().values()
            for name in frozenset[str]().union(*(self.stored[value] for value in values))
        )
        return [name for name, count in counts.items() if count > 1]

    def bytes(self, name: str) -> int:
        """What one copy of a stored table stores and computes, for the reader that needs most."""
        return max(
            sum(_bytes(node) for node in self._closure(values))
            for values in self.readers().values()
            if any(name in self.stored[value] for value in values)
        )

    def _closure(self, values: list[Node]) -> set[Node]:
        """Tables with the tables that they are computed from."""
        found, waiting = set[Node](), list(values)
        while waiting:
            node = waiting.pop()
            if node in self.stored and node not in found:
                found.add(node)
                waiting.extend(node.all_input_nodes)
        return found


def _bytes(node: Node) -> int:
    value = walk.value(node)
    return prod(walk.hint(size) for size in value.shape) * value.element_size()

"""Where integers go: which operators run in int8 and which tensors are quantized for them.

The rules, in the order they are applied:

1. A *contraction* (convolution, linear) with a stored weight that the target has a kernel for runs in int8,
   and wants its input quantized. All readers of its weight must run in int8 and agree on the axis (or look
   rows up in a table that will have integers of its own); else all are declined.
2. In graph order, an operator with an integer kernel that only combines numbers (addition, pooling,
   concatenation) runs in int8 where that leaves fewer elements to convert between float and integers, around
   it, than running it in float would; layout runs on integers where it reads them. This looks at one operator
   at a time.
3. A kernel that only writes integers has its output quantized; a rectifier that alone reads it is absorbed,
   and the output is then the rectifier's. Layout repeats the scale of what it reads.
4. Backwards, layout whose values no integer kernel reads is left in float again.

A tensor is quantized once, however many read it. Its float readers get the dequantized value where the
kernel before it has nothing else to give, and the original where it has.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from math import prod

from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.quantization import Kind, Role, activations, role
from fxcompress.plan.eligibility import (
    KEEPS_SCALE,
    absorbable,
    contraction_fault,
    excluded,
    is_batched,
    is_contraction,
    movement_fault,
    operand,
)
from fxcompress.plan.guards import guarded
from fxcompress.plan.pair_positions import above_layout, fused_operand, share_scale
from fxcompress.plan.tables import lookup_reason, lookups, table_fault
from fxcompress.targets.target import Kernel, Scheme, Target

NOT_CHOSEN = "float was chosen: with the conversions around it, integers would take longer or cost accuracy"
READS_FLOAT = "integers would cost more conversions than they save: its neighbours are in float"
SPARED = "left in float by whoever asked for the plan"
UNKNOWN = "no quantization rule for this operator"


@dataclass
class Placement:
    """The choice of precision, before any range is known. Keys are node names.

    `kernels` are the operators that run in int8, with the kernel the runtime should show (empty: absorbed
    by another operator, or layout). `tensors` are the quantized tensors, each with the tensor whose scale
    it has; `covered` are, by owner of a scale that is shared, the tensors whose ranges it covers too.
    `integer_only` are those whose float readers must read the dequantized value. `declined` are the
    operators that stay in float, with the reason; `guarded` those among them that the runtime would
    quantize by itself. `schemes` are, by owner of a scale, those that are not the target's.
    """

    kernels: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    covered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    integer_only: set[str] = field(default_factory=set)
    contractions: list[str] = field(default_factory=list)
    declined: dict[str, str] = field(default_factory=dict)
    guarded: list[str] = field(default_factory=list)
    schemes: dict[str, Scheme] = field(default_factory=dict)

    def owner_read(self, source: fx.Node) -> str | None:
        """Return the owner of the scale that a tensor is read by, perhaps through layout that has no pair of
        its own; None where it is read in float.
        """
        while source.name not in self.tensors:
            row = role(source)
            if row is None or row.kind not in KEEPS_SCALE or source.name not in self.kernels:
                return None
            source = activations(source, row)[0]
        return self.tensors[source.name]

    def roots(self) -> list[str]:
        """Return the tensors that own a scale."""
        return list(dict.fromkeys(self.tensors.values()))

    def observed(self) -> list[str]:
        """Return the tensors whose ranges must be known."""
        shared = (name for names in self.covered.values() for name in names)
        return list(dict.fromkeys([*self.roots(), *shared]))


def place(
    program: Program,
    target: Target,
    exclude: Sequence[str] = (),
    integers: AbstractSet[str] | None = None,
    spared: AbstractSet[str] = frozenset(),
) -> Placement:
    """Decide the precision of every operator.

    Args:
        program: what is to be quantized.
        target: the runtime.
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
        integers: the names of the operators that run in int8 where the target has a kernel for them, and no
            others; layout follows what it reads. None stands for rules 1 and 2.
        spared: names of operators that stay in float.
    """
    placer = _Placer(program, target, tuple(exclude), integers, spared)
    placer.contractions()
    placer.find_wanted()
    placer.movers()
    placer.drop_useless_layout()
    return placer.finish()


class _Placer:
    """The state of one placement."""

    def __init__(
        self,
        program: Program,
        target: Target,
        exclude: tuple[str, ...],
        integers: AbstractSet[str] | None = None,
        spared: AbstractSet[str] = frozenset(),
    ) -> None:
        self.program, self.target, self.exclude, self.integers = program, target, exclude, integers
        self.spared = spared
        self.calls = [node for node in program.graph.nodes if node.op == "call_function"]
        self.result = Placement()
        self.root: dict[fx.Node, fx.Node] = {}
        """Quantized tensors with the tensor whose scale they have."""
        self.covered: dict[fx.Node, set[fx.Node]] = {}
        """By owner of a shared scale, the tensors whose ranges it must cover beside its own."""
        self.wanted: set[fx.Node] = set()

    def contractions(self) -> None:
        """Rule 1."""
        faults = {
            node: self._fault(node, row)
            for node in self.calls
            if (row := role(node)) and is_contraction(node)
        }
        faults |= {node: self._sharing_fault(node, faults) for node, fault in faults.items() if fault is None}
        for node, fault in faults.items():
            if fault is not None:
                self.result.declined[node.name] = fault
                continue
            self.result.contractions.append(node.name)
        for node in faults:
            if node.name in self.result.contractions:
                self._read_integers(node)

    def _read_integers(self, node: fx.Node) -> None:
        """Quantize the input of a contraction, before layout where the runtime moves the pair through it."""
        source = activations(node, _row(node))[0]
        if not self.target.repeats_pairs:
            passed = above_layout(source, self.result.contractions)
            self.result.kernels |= {layout.name: "" for layout in passed}
            source = activations(passed[-1], _row(passed[-1]))[0] if passed else source
        self.root.setdefault(source, source)

    def _fault(self, node: fx.Node, row: Role) -> str | None:
        if self._excluded(node, row):
            return SPARED if node.name in self.spared else "excluded by name"
        fault = contraction_fault(self.program, node, row, self.target)
        if fault is None and self.integers is not None and node.name not in self.integers:
            return NOT_CHOSEN
        return fault

    def _sharing_fault(self, node: fx.Node, faults: dict[fx.Node, str | None]) -> str | None:
        row = _row(node)
        weight = operand(node, row.weight)
        assert weight is not None
        readers = list(weight.users)
        rows = lookups(weight) if self.target.integer_tables else []
        if rows and table_fault(self.program, weight, self.exclude) is None:
            readers = [reader for reader in readers if reader not in rows]
        for reader in readers:
            other = role(reader)
            if faults.get(reader, "not a contraction") is not None or other is None:
                return f"its weight is also read by {reader.name}, which stays in float"
            if operand(reader, other.weight) is not weight or _axis(reader) != _axis(node):
                return f"its weight is also read by {reader.name}, along another axis"
        return None

    def _excluded(self, node: fx.Node, row: Role | None = None) -> bool:
        weight = operand(node, row.weight) if row is not None else None
        return node.name in self.spared or excluded(self.exclude, node, weight)

    def movers(self) -> None:
        """Rules 2 and 3, in graph order."""
        for node in self.calls:
            row = role(node)
            if node.name in self.result.contractions:
                self._run(node, self._contraction_kernel(node, _row(node)))
            elif node.name in self.result.kernels or node.name in self.result.declined:
                continue
            elif row is not None:
                self._move(node, row)
            elif node.target is not operator.getitem:
                self._decline(node, UNKNOWN)

    def _decline(self, node: fx.Node, reason: str) -> None:
        """Report an operator on floats that stays so; indices and sizes are not meant."""
        if walk.is_tensor(node) and walk.value(node).is_floating_point():
            self.result.declined[node.name] = reason

    def _contraction_kernel(self, node: fx.Node, row: Role) -> Kernel:
        return self.target.batched_linear if is_batched(node, row) else self.target.kernels[row.kind]

    def _move(self, node: fx.Node, row: Role) -> None:
        reason = self._movement_reason(node, row)
        if reason is not None:
            if row.kind is not Kind.LAYOUT:
                self._decline(node, reason)
            return
        fused = fused_operand(node, self.target, self.result.contractions)
        sources = [source for source in activations(node, row) if source is not fused]
        for source in sources:
            self.root.setdefault(source, source)
        if row.kind not in KEEPS_SCALE:
            kernel = self.target.kernels[row.kind]
            self._run(node, kernel if fused is None else replace(kernel, name=""))
            if row.kind in self.target.shared_scales:
                share_scale(self.root, self.covered, sources, node)
            return
        self.result.kernels[node.name] = self.target.kernels[row.kind].name
        for made in tensors_of(node):
            self.root[made] = self.root[sources[0]]
            self.result.integer_only.add(made.name)

    def _movement_reason(self, node: fx.Node, row: Role) -> str | None:
        if row.kind is Kind.LINEAR:
            return self.target.float_reasons.get(Kind.MATMUL, "both factors are activations")
        if row.kind is Kind.LOOKUP and self.target.integer_tables:
            return lookup_reason(self.program, node, self.exclude)
        if row.kind not in self.target.kernels:
            return self.target.float_reasons.get(row.kind, "no integer kernel")
        if self._excluded(node):
            return SPARED if node.name in self.spared else "excluded by name"
        fault = movement_fault(node, row)
        if fault is not None:
            return fault
        sources = activations(node, row)
        if row.kind in KEEPS_SCALE:
            return None if sources[0] in self.root else READS_FLOAT
        if row.kind in self.target.shared_scales and any(self._clamps(source) for source in sources):
            return "an input has the scale of a hard sigmoid, which does its clamping"
        if self.integers is not None:
            return None if node.name in self.integers else NOT_CHOSEN
        if fused_operand(node, self.target, self.result.contractions) is not None:
            return None
        return None if self._saves_conversions(node, row, sources) else READS_FLOAT

    def _clamps(self, source: fx.Node) -> bool:
        """Whether the scale of a quantized tensor is that of a hard sigmoid, which nothing may replace."""
        row = role(self.root.get(source, source))
        return row is not None and row.kind is Kind.HARD_SIGMOID and source in self.root

    def _saves_conversions(self, node: fx.Node, row: Role, sources: list[fx.Node]) -> bool:
        """Compare the elements that must be converted around an operator with it in int8 and in float."""
        end = self._end(node, self.target.kernels[row.kind])
        made = prod(walk.hint_shape(end))
        wanted = end in self.wanted
        sizes = {source: prod(walk.hint_shape(source)) for source in sources}
        if self.target.requantizes_freely:
            ready = sum(size for source, size in sizes.items() if self._hands_out_integers(source))
            return wanted and ready > sum(sizes.values()) - ready
        foreign = sum(size for source, size in sizes.items() if source not in self.root)
        native = sum(size for source, size in sizes.items() if source.name in self.result.integer_only)
        return foreign + (0 if wanted else made) < native + (made if wanted else 0)

    def _hands_out_integers(self, source: fx.Node) -> bool:
        """Whether a tensor is quantized, or made by an integer kernel that could as well write integers."""
        row = role(source)
        if row is not None and row.kind is Kind.RECTIFY and source not in self.root:
            source = activations(source, row)[0]
        return source in self.root or source.name in self.result.kernels

    def find_wanted(self) -> None:
        """Find the tensors whose integers some contraction downstream reads, perhaps through what passes
        them on.
        """
        self.wanted = set(self.root)
        for node in reversed(self.calls):
            if any(self._passes_on(reader) for reader in node.users):
                self.wanted.add(node)

    def _passes_on(self, reader: fx.Node) -> bool:
        row = role(reader)
        if (
            row is None
            or is_contraction(reader)
            or not any(made in self.wanted for made in tensors_of(reader))
        ):
            return False
        if row.kind is Kind.RECTIFY:
            return absorbable(activations(reader, row)[0]) is reader
        return row.kind in self.target.kernels and movement_fault(reader, row) is None

    def _end(self, node: fx.Node, kernel: Kernel) -> fx.Node:
        """Return the rectifier or hard sigmoid that a kernel absorbs, else the operator itself."""
        if not kernel.absorbs:
            return node
        return absorbable(node) or self._hard_sigmoid(node) or node

    def _hard_sigmoid(self, node: fx.Node) -> fx.Node | None:
        """Return the hard sigmoid that alone reads a node, where quantization may do its clamping."""
        reader = next(iter(node.users), None)
        row = None if reader is None else role(reader)
        if row is None or len(node.users) != 1 or row.kind is not Kind.HARD_SIGMOID:
            return None
        assert reader is not None
        wanted = self.integers is None or reader.name in self.integers
        allowed = row.kind in self.target.kernels and wanted and not self._excluded(reader)
        return reader if allowed and movement_fault(reader, row) is None else None

    def _run(self, node: fx.Node, kernel: Kernel) -> None:
        """Let an operator run in int8; quantize its output if the kernel writes nothing else."""
        end = self._end(node, kernel)
        if kernel.writes_integers:
            self.root.setdefault(end, end)
            self.result.integer_only.add(end.name)
        quantized = end in self.root and operand(node, _row(node).bias) is None
        self.result.kernels[node.name] = (
            kernel.quantized_name if quantized and kernel.quantized_name else kernel.name
        )
        if end is not node and end in self.root:
            self.result.kernels[end.name] = ""

    def drop_useless_layout(self) -> None:
        """Rule 4."""
        for node in reversed(self.calls):
            row = role(node)
            if row is None or row.kind not in KEEPS_SCALE or node.name not in self.result.kernels:
                continue
            made = tensors_of(node)
            if not any(reader.name in self.result.kernels for tensor in made for reader in tensor.users):
                del self.result.kernels[node.name]
                for tensor in made:
                    self.root.pop(tensor, None)
                    self.result.integer_only.discard(tensor.name)

    def finish(self) -> Placement:
        """Name the quantized tensors, in graph order, and find what the runtime must be kept from."""
        if self.target.requantizes_constants:
            floats = [node for node in self.calls if node.name in self.result.declined]
            self.result.guarded += guarded(floats, self.root, self.result.integer_only)
        for node in self.program.graph.nodes:
            if node in self.root:
                self.result.tensors[node.name] = self.root[node].name
            if node in self.covered:
                self.result.covered[node.name] = tuple(other.name for other in sorted(self.covered[node]))
        return self.result


def tensors_of(node: fx.Node) -> list[fx.Node]:
    """Return the tensors a node makes: itself, or the items taken of its list."""
    if walk.is_tensor(node):
        return [node]
    return [reader for reader in walk.consumers(node) if reader.target is operator.getitem]


def _axis(node: fx.Node) -> int:
    row = _row(node)
    weight = operand(node, row.weight)
    assert weight is not None
    return row.axis % walk.value(weight).dim()


def _row(node: fx.Node) -> Role:
    row = role(node)
    assert row is not None
    return row

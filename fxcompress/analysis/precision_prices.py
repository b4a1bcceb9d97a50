"""What every operator of a program costs in float and in int8, and every tensor that crosses between them.

The model is additive: the time of a program is that of its operators, each in its precision, plus one
conversion for every *tensor* that some operator hands over in another precision than it made, however many
read it. Operators that cannot be told apart are one *vertex*: a rectifier and what absorbs it, an activation
that the runtime folds into a float convolution, layout and what makes its input (they share a scale), a
permutation that puts channels second and the convolution that reads it: beside an integer convolution, whose
channels are last, it vanishes (in ConvNeXt, 0.8 ms of float transposes).

Kernels are timed one by one (`runtime/kernel_times.py`), so the price of changing layouts is added here.
Float convolutions work on blocks of channels. Whoever reads their output otherwise pays a `ReorderOutput`:
always where a float operator of another layout reads it, and with the conversion where an integer operator
does. `ReorderInput` is the mirror image. Integer convolutions want channels last, which is a transposition of
integers beside a conversion.

How far the sum is from the kernels in the runtime's profile of the whole model, in ms, predicted / profiled
(one thread, AMD EPYC with VNNI, onnxruntime 1.31, a busy machine):

                       float          all int8       cut
    MobileNetV2        7.56 / 7.54    3.68 / 3.80    3.68 / 3.69
    MobileNetV3-large  6.39 / 6.42    5.25 / 4.91    4.62 / 4.51
    EfficientNet-B0    14.5 / 11.8    8.12 / 9.17    7.72 / 8.58

The order of the choices is right in each. Operators in float either way (normalisation, attention) have no
price: in ConvNeXt and ViT the sum is that much too low, and alike for all choices.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from torch import fx

from fxcompress.analysis.integer_kernels import Sizes, fused_in_float, kernels_of, turns_channels
from fxcompress.errors import CompressError
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.quantization import Kind, activations, role
from fxcompress.runtime.conversion_times import ConversionTimes
from fxcompress.runtime.kernel_models import Kernel
from fxcompress.runtime.kernel_times import KernelTimes

_BLOCKED_FROM = 8
"""Channels from which a float convolution reads a blocked layout."""
_FOLLOWS_LAYOUT = (Kind.ADD, Kind.CONCATENATE, Kind.AVERAGE, Kind.GLOBAL_AVERAGE, Kind.RECTIFY)


@dataclass(frozen=True)
class Vertex:
    """Operators that have one precision.

    Args:
        name: the first operator's node.
        operators: all of them.
        float_ms: their time in float.
        int8_ms: their time in int8; infinite where there is no integer kernel.
        error: what int8 adds to the relative squared error of the output, roughly.
    """

    name: str
    operators: tuple[str, ...]
    float_ms: float
    int8_ms: float = math.inf
    error: float = 0.0


@dataclass(frozen=True)
class Crossing:
    """A tensor between vertices.

    Args:
        name: its node.
        maker: the vertex that makes it; None for inputs, and for what is made in float whatever its maker
            computes in.
        readers: the vertices that read it.
        quantize_ms: one conversion to integers, paid if the maker is float and a reader is not.
        dequantize_ms: one conversion to float, paid if the maker is int8 and a reader is not.
    """

    name: str
    maker: str | None
    readers: tuple[str, ...]
    quantize_ms: float
    dequantize_ms: float


@dataclass(frozen=True)
class PrecisionPrices:
    """The prices of a program; vertices that can only be float are listed too."""

    vertices: tuple[Vertex, ...]
    crossings: tuple[Crossing, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def ms(self, integers: AbstractSet[str]) -> float:
        """Milliseconds with these vertices (by name) in int8 and the others in float."""
        operators = math.fsum(
            vertex.int8_ms if vertex.name in integers else vertex.float_ms for vertex in self.vertices
        )
        return operators + math.fsum(self._crossing(item, integers) for item in self.crossings)

    def _crossing(self, item: Crossing, integers: AbstractSet[str]) -> float:
        made = item.maker is not None and item.maker in integers
        wanted = {reader in integers for reader in item.readers}
        if made:
            return item.dequantize_ms if False in wanted else 0.0
        return item.quantize_ms if True in wanted else 0.0

    def error(self, integers: AbstractSet[str]) -> float:
        """The errors of these vertices in int8, added up."""
        return math.fsum(vertex.error for vertex in self.vertices if vertex.name in integers)

    def operators(self, integers: AbstractSet[str]) -> frozenset[str]:
        """The operators of vertices."""
        return frozenset(
            name for vertex in self.vertices if vertex.name in integers for name in vertex.operators
        )

    def with_errors(self, errors: Mapping[str, float]) -> PrecisionPrices:
        """The same times with other errors, by operator.

        Vertices of which no operator is named keep theirs, in the proportion that the named ones change in.
        """
        named = {
            vertex.name: math.fsum(errors.get(name, 0.0) for name in vertex.operators)
            for vertex in self.vertices
            if not errors.keys().isdisjoint(vertex.operators)
        }
        before = self.error(named.keys())
        scale = math.fsum(named.values()) / before if before else 1.0
        vertices = (
            replace(vertex, error=named.get(vertex.name, scale * vertex.error)) for vertex in self.vertices
        )
        return replace(self, vertices=tuple(vertices))

    def scaled(self, conversions: float) -> PrecisionPrices:
        """Prices at which every conversion costs that many times as much."""
        crossings = tuple(
            replace(
                item,
                quantize_ms=conversions * item.quantize_ms,
                dequantize_ms=conversions * item.dequantize_ms,
            )
            for item in self.crossings
        )
        return replace(self, crossings=crossings)


def precision_prices(
    program: Program,
    capable: Mapping[str, str],
    times: KernelTimes,
    batch: int = 1,
    errors: Mapping[str, float] | None = None,
) -> PrecisionPrices:
    """Measure what every operator of a program costs in float and in int8.

    Args:
        program: the float program that is to be quantized.
        capable: the operators that can run in int8, each with its kernel; `""` for those that have none of
            their own (absorbed rectifiers, layout).
        times: measures kernels and remembers them.
        batch: samples per call.
        errors: what int8 in an operator adds to the error.
    """
    pricer = _Pricer(program, capable, times, batch)
    vertices = tuple(pricer.vertex(head, members, errors or {}) for head, members in pricer.clusters())
    return PrecisionPrices(vertices, tuple(pricer.crossings()), tuple(pricer.notes))


class _Pricer:
    """The state of one pricing."""

    def __init__(self, program: Program, capable: Mapping[str, str], times: KernelTimes, batch: int) -> None:
        self.capable, self.times = capable, times
        self.conversions = ConversionTimes(times)
        self.sizes = Sizes(program, batch)
        self.calls = [node for node in program.graph.nodes if node.op == "call_function"]
        self.outputs = set(walk.output_values(program))
        self.notes: list[str] = []
        self.head: dict[fx.Node, fx.Node] = {}
        self.blocked: set[fx.Node] = set()
        for node in self.calls:
            self.head[node] = self._head(node)
            if self._is_blocked(node):
                self.blocked.add(node)

    def _head(self, node: fx.Node) -> fx.Node:
        """The operator that decides for a node: its maker where it is absorbed, fused, layout or part."""
        if node.target is operator.getitem:
            return self.head.get(node.all_input_nodes[0], node)
        row = role(node)
        sources = [] if row is None else activations(node, row)
        if not sources or sources[0] not in self.head:
            return node
        source = sources[0]
        follows = self.capable.get(node.name) == "" and source.name in self.capable
        fused = node.name in self.capable and fused_in_float(source) is node
        reader = next(iter(node.users), None)
        if turns_channels(node) and len(node.users) == 1 and reader is not None and _is_convolution(reader):
            return reader
        turned = turns_channels(node) and _is_convolution(source) and len(source.users) == 1
        return self.head[source] if follows or fused or turned else node

    def _is_blocked(self, node: fx.Node) -> bool:
        """Whether a float operator leaves its output in blocks of channels."""
        row = role(node)
        if row is None or not walk.is_tensor(node) or walk.value(node).dim() != 4:
            return False
        if row.kind is Kind.CONVOLUTION:
            return walk.hint_shape(node)[1] % _BLOCKED_FROM == 0
        sources = activations(node, row)
        same = {walk.hint_shape(source) for source in sources}
        aligned = len(same) == 1 or row.kind is Kind.CONCATENATE
        follows = row.kind in _FOLLOWS_LAYOUT or (len(sources) == 1 and row.kind in (Kind.SIGMOID, Kind.GATE))
        pooled = "pool2d" in str(node.target)
        return bool(sources) and (follows or pooled) and aligned and all(x in self.blocked for x in sources)

    def clusters(self) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
        """The operators of each vertex, under the first one."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for node in self.calls:
            if walk.is_tensor(node) and walk.value(node).is_floating_point():
                found.setdefault(self.head[node], []).append(node)
        yield from found.items()

    def vertex(self, head: fx.Node, members: Sequence[fx.Node], errors: Mapping[str, float]) -> Vertex:
        """Measure one vertex."""
        names = tuple(node.name for node in members)
        able = self.capable.get(head.name) != "" and all(self._is_able(node) for node in members)
        floats = integers = 0.0
        folded = {node for member in members if (node := fused_in_float(member)) is not None}
        for node in members:
            absorbed = next((item for item in members if item in node.users and self._absorbed(item)), None)
            batched = "MatMul" in self.capable.get(node.name, "")
            both = kernels_of(node, self.sizes, absorbed, batched)
            if node not in folded:
                floats += self._ms(both.floats)
            if able and not (self.capable.get(node.name) == "" and self._is_activation(node)):
                integers += self._ms(both.integers or ())
            floats += self._layout(node, members)
        able = able and not math.isinf(integers)
        if not math.isfinite(floats) or math.isnan(integers):
            floats = integers = 0.0  # a price for one side alone would decide for the other
        if not able:
            return Vertex(head.name, names, floats)
        return Vertex(head.name, names, floats, integers, math.fsum(errors.get(name, 0.0) for name in names))

    def _is_able(self, node: fx.Node) -> bool:
        """Whether a node can be in integers: by a kernel, as layout, or as a part of what can."""
        if node.target is operator.getitem:
            return node.all_input_nodes[0].name in self.capable
        return node.name in self.capable or turns_channels(node)

    def _is_activation(self, node: fx.Node) -> bool:
        row = role(node)
        return row is not None and row.kind in (Kind.RECTIFY, Kind.HARD_SIGMOID)

    def _absorbed(self, node: fx.Node) -> bool:
        row = role(node)
        return row is not None and row.kind is Kind.RECTIFY and self.capable.get(node.name) == ""

    def _ms(self, kernels: Sequence[Kernel]) -> float:
        return math.fsum(self._kernel(kernel) for kernel in kernels)

    def _kernel(self, kernel: Kernel) -> float:
        """Milliseconds; not a number where time ran out before, infinite where it does not run."""
        try:
            found = self.times.ms(kernel)
        except CompressError as error:
            self.notes.append(f"a kernel does not run: {error.message}")
            return math.inf
        return math.nan if found is None else found

    def _layout(self, node: fx.Node, members: Sequence[fx.Node]) -> float:
        """Changes of layout that are paid whenever this operator is float."""
        paid = 0.0
        plain_reader = node in self.outputs or any(reader not in self.blocked for reader in node.users)
        inside = all(reader in members for reader in node.users) and node not in self.outputs
        if node in self.blocked and plain_reader and not inside and not self._tiny(node):
            paid += self._step("ReorderOutput", node)
        row = role(node)
        if row is not None and row.kind is Kind.CONVOLUTION:
            source = activations(node, row)[0]
            if source not in self.blocked and self._wide(source):
                paid += self._step("ReorderInput", source)
        return paid

    def _wide(self, node: fx.Node) -> bool:
        shape = walk.hint_shape(node)
        return len(shape) == 4 and shape[1] >= _BLOCKED_FROM and not self._tiny(node)

    def _tiny(self, node: fx.Node) -> bool:
        return math.prod(walk.hint_shape(node)[2:]) == 1

    def _step(self, step: str, node: fx.Node) -> float:
        return self.conversions.ms(step, math.prod(self.sizes.of(node)))

    def crossings(self) -> Iterator[Crossing]:
        """Every float tensor that is read in another vertex than the one that makes it."""
        for node in [*self._inputs(), *self.calls]:
            if not (walk.is_tensor(node) and walk.value(node).is_floating_point()):
                continue
            maker = self.head.get(node)
            heads = {self.head[reader]: None for reader in node.users if reader in self.head}
            readers = [head for head in heads if head is not maker]
            able = [head for head in (*readers, *([maker] if maker else [])) if head.name in self.capable]
            if not able or not (readers or node in self.outputs):
                continue
            yield self._crossing(node, maker, readers)

    def _inputs(self) -> list[fx.Node]:
        return list(
            {
                source: None
                for node in self.calls
                for source in node.all_input_nodes
                if source.op == "placeholder"
            }
        )

    def _crossing(self, node: fx.Node, maker: fx.Node | None, readers: Sequence[fx.Node]) -> Crossing:
        to_integers, to_float = self._step("QuantizeLinear", node), self._step("DequantizeLinear", node)
        image = walk.value(node).dim() == 4 and not self._tiny(node)
        if image and any(_is_convolution(reader) for reader in node.users):
            to_integers += self._step("Transpose", node)
        if image and maker is not None and maker.name in self.capable and not turns_channels(node):
            to_float += self._step("Transpose", node)
        in_blocks = [reader for reader in node.users if reader in self.blocked]
        if image and node in self.blocked and len(in_blocks) == len(node.users):
            to_integers += self._step("ReorderOutput", node)
            to_float += self._step("ReorderInput", node)
        kernel = "" if maker is None else self.capable.get(maker.name, "")
        names = tuple(reader.name for reader in readers)
        if kernel in ("QGemm", "MatMulIntegerToFloat"):
            # These can write floats as well: a Gemm writes what is wanted, a product always floats.
            free = kernel == "QGemm"
            return Crossing(node.name, maker.name if free and maker else None, names, to_integers, 0.0)
        outputs = ("",) * (node in self.outputs)
        return Crossing(node.name, maker.name if maker else None, (*names, *outputs), to_integers, to_float)


def _is_convolution(node: fx.Node) -> bool:
    row = role(node)
    return row is not None and row.kind is Kind.CONVOLUTION

"""Whether the Q/DQ pairs of an ONNX file stand as a target's description asks, read from the file alone.

For a runtime that is not at hand this is the only proof there is: each rule below is one that its
documentation states and `fxcompress.targets` holds as data. The file is looked at as any reader would; the
plan and the program it came from are not trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from fxcompress.errors import ProofError
from fxcompress.ops.quantization import Kind
from fxcompress.targets.target import Kernel, Scheme, Target

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = MappingProxyType(
    {
        "Conv": (Kind.CONVOLUTION, False),
        "ConvTranspose": (Kind.TRANSPOSED, False),
        "Gemm": (Kind.LINEAR, False),
        "MatMul": (Kind.LINEAR, True),
    }
)
"""Operators with a stored weight as input 1, their kind, and whether it is the batched form of it."""
LAYOUT = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Resize"}
) | {*("DepthToSpace", "SpaceToDepth", "Expand", "Identity", "Split", "Gather")}
ACTIVATIONS = frozenset({"Relu", "Clip"})
STANDARD = frozenset({"", "ai.onnx"})
DTYPES = MappingProxyType({"uint8": np.dtype(np.uint8), "int8": np.dtype(np.int8)})


def check_structure(model: onnx.ModelProto, target: Target) -> int:
    """Return how many quantizations of activations were checked.

    Raises:
        ProofError: a pair stands, or is, as the target does not read it.
    """
    faults = structural_faults(model, target)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ProofError(f"the file is not what {target.name} reads: {faults[0]}{more}")
    return sum(node.op_type == QUANTIZE for node in model.graph.node)


def structural_faults(model: onnx.ModelProto, target: Target) -> tuple[str, ...]:
    """Return every deviation of a file from a target's description, in words."""
    file = _File(model)
    return tuple(fault for rule in RULES for fault in rule(file, target))


class _File:
    """The graph of a file with what is asked of it again and again."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def array(self, name: str) -> NDArray[np.generic]:
        return np.asarray(numpy_helper.to_array(self.stored[name]))

    def of(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in kinds)

    def stored_pair(self, name: str) -> onnx.NodeProto | None:
        """Return the DQ that a value comes from, if it reads stored integers."""
        node = self.maker.get(name)
        return (
            node if node is not None and node.op_type == DEQUANTIZE and node.input[0] in self.stored else None
        )

    def pair(self, name: str) -> onnx.NodeProto | None:
        """Return the DQ of an activation that a value comes from, if it does."""
        node = self.maker.get(name)
        varies = node is not None and node.op_type == DEQUANTIZE and node.input[0] not in self.stored
        return node if varies else None

    def integer_weight(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the DQ of the int8 weight of a weighted operator."""
        found = self.stored_pair(node.input[1]) if len(node.input) > 1 else None
        return found if found is not None and self.array(found.input[0]).dtype == np.int8 else None


@dataclass(frozen=True)
class _Numbers:
    """Scales and zero points of a Q or DQ; the zero point is 0 where it is left out."""

    scales: NDArray[np.generic]
    zeros: NDArray[np.generic]


def _numbers(file: _File, node: onnx.NodeProto) -> _Numbers | None:
    if node.input[1] not in file.stored:
        return None
    absent = len(node.input) < 3 or not node.input[2]
    zeros = np.zeros((), np.uint8) if absent else file.array(node.input[2])
    return _Numbers(file.array(node.input[1]), zeros)


def domains(file: _File, target: Target) -> Iterator[str]:
    """Operators are of ONNX's own domain, or of one that the target reads."""
    for node in file.nodes:
        if node.domain not in STANDARD | target.domains:
            yield f"{_label(node)} is of the domain {node.domain}"


def activations(file: _File, target: Target) -> Iterator[str]:
    """A Q has a type of the target's, one stored scale, zero where symmetric, and only a DQ reads it."""
    integer_readers = {DEQUANTIZE} | ({"Pad"} if Kind.PAD in target.kernels else set())
    for node in file.of(QUANTIZE):
        found = _numbers(file, node)
        if found is None:
            yield f"the scale of {_label(node)} is computed, not stored"
            continue
        if found.scales.size != 1 or found.zeros.size != 1:
            yield f"{_label(node)} has {found.scales.size} scales: activations have one"
            continue
        yield from _scheme_faults(node, found.zeros, target.activation_schemes)
        yield from _scale_faults(node, found.scales)
        if node.input[0] in file.stored:
            yield f"{_label(node)} quantizes a stored tensor: weights are stored as integers"
        for reader in file.readers.get(node.output[0], []):
            if reader.op_type not in integer_readers:
                yield f"{_label(reader)} reads the integers of {_label(node)}"


def _scheme_faults(
    node: onnx.NodeProto, zeros: NDArray[np.generic], wanted: Iterable[Scheme]
) -> Iterator[str]:
    """What keeps the integers of a Q or DQ from having one of some schemes."""
    fitting = [scheme for scheme in wanted if zeros.dtype == DTYPES[scheme.dtype]]
    if not fitting:
        names = " or ".join(sorted({scheme.dtype for scheme in wanted}))
        yield f"{_label(node)} makes {zeros.dtype}, not {names}"
    elif all(scheme.symmetric for scheme in fitting) and zeros.any():
        yield f"{_label(node)} has the zero point {int(zeros.flat[0])}: the target knows 0 only"


def operands(file: _File, target: Target) -> Iterator[str]:
    """The activation that a weighted operator in integers reads is of its kernel's scheme.

    A MatMul may be either form of a linear. Of operators without a weight a file does not say whether they
    run in integers: one that reads others than it wants runs in float.
    """
    for node in file.of(*WEIGHTED):
        kind, batched = WEIGHTED[node.op_type]
        pair = _pair_above(file, node.input[0], target)
        if target.uniform or pair is None or kind not in target.kernels or file.integer_weight(node) is None:
            continue
        found = _numbers(file, pair)
        wanted = {target.activation_scheme(kind), target.activation_scheme(kind, batched=batched)}
        for fault in () if found is None else _scheme_faults(pair, found.zeros, wanted):
            yield f"{_label(node)} reads integers that are not its own: {fault}"


def chains(file: _File, target: Target) -> Iterator[str]:  # noqa: ARG001
    """No DQ is quantized again at once: the target would round twice, or keep both."""
    for node in file.of(QUANTIZE):
        if file.pair(node.input[0]) is not None:
            yield f"{_label(node)} quantizes what was dequantized right before it"


def weights(file: _File, target: Target) -> Iterator[str]:
    """A stored int8 weight is symmetric, with the target's scales, and its operator reads integers."""
    for node in file.of(*WEIGHTED):
        pair = file.integer_weight(node)
        if pair is None:
            continue
        kind, batched = WEIGHTED[node.op_type]
        if kind not in target.kernels:
            yield f"{_label(node)} has an int8 weight, and the target no integer kernel for it"
            continue
        yield from _weight_faults(file, node, pair, target.weight_scheme(kind, batched=batched))
        if _pair_above(file, node.input[0], target) is None:
            yield f"{_label(node)} has an int8 weight, and its input is not quantized"


def _weight_faults(file: _File, node: onnx.NodeProto, pair: onnx.NodeProto, wanted: Scheme) -> Iterator[str]:
    found = _numbers(file, pair)
    if found is None:
        yield f"the scale of the weight of {_label(node)} is computed, not stored"
        return
    if found.zeros.any():
        yield f"the weight of {_label(node)} has a zero point that is not 0"
    yield from _scale_faults(pair, found.scales)
    values = file.array(pair.input[0])
    axis = _output_axis(node, values.ndim)
    if wanted.per_channel:
        along = _attribute(pair, "axis", 1) % values.ndim
        if found.scales.shape != (values.shape[axis],) or along != axis:
            yield f"the weight of {_label(node)} does not have one scale per output channel"
    elif found.scales.size != 1:
        yield f"the weight of {_label(node)} has {found.scales.size} scales, not one"
    if wanted.bits == 7 and np.abs(values.astype(np.int32)).max(initial=0) > 64:
        yield f"the weight of {_label(node)} uses more than 7 bits"


def _pair_above(file: _File, name: str, target: Target) -> onnx.NodeProto | None:
    """Return the DQ that a value comes from, through layout where the target moves pairs through it."""
    while (pair := file.pair(name)) is None:
        node = file.maker.get(name)
        if target.repeats_pairs or node is None or node.op_type not in LAYOUT:
            return None
        name = node.input[0]
    return pair


def biases(file: _File, target: Target) -> Iterator[str]:
    """A bias comes out of a DQ only where the target adds it to an integer accumulator."""
    for node in file.of(*WEIGHTED):
        pair = file.stored_pair(node.input[2]) if len(node.input) > 2 else None
        if pair is None:
            continue
        kind, batched = WEIGHTED[node.op_type]
        guard = file.integer_weight(node) is None and target.requantizes_constants
        if not guard and not (kind in target.kernels and target.kernel(kind, batched=batched).integer_bias):
            yield f"the bias of {_label(node)} is quantized"
        elif file.array(pair.input[0]).dtype != np.int32:
            yield f"the bias of {_label(node)} is {file.array(pair.input[0]).dtype}, not int32"


def outputs(file: _File, target: Target) -> Iterator[str]:
    """A kernel that only writes integers has its output quantized, perhaps after a rectifier."""
    for node in file.of(*WEIGHTED):
        kind, batched = WEIGHTED[node.op_type]
        if file.integer_weight(node) is None or kind not in target.kernels:
            continue
        kernel: Kernel = target.kernel(kind, batched=batched)
        if kernel.writes_integers and not _ends_quantized(file, node.output[0]):
            yield f"{_label(node)} hands out floats"


def _ends_quantized(file: _File, name: str) -> bool:
    readers = file.readers.get(name, [])
    passing = ACTIVATIONS | {"Add"}  # the bias of a MatMul
    while len(readers) == 1 and readers[0].op_type in passing and name not in file.outputs:
        name = readers[0].output[0]
        readers = file.readers.get(name, [])
    return bool(readers) and all(reader.op_type == QUANTIZE for reader in readers)


def additions(file: _File, target: Target) -> Iterator[str]:
    """In a skip connection the branch that the addition fuses with is in float, the other is quantized."""
    if not target.fuses_addition:
        return
    for node in file.of("Add"):
        if any(name in file.stored for name in node.input):
            continue
        convolved = [name for name in node.input if _is_convolved(file, name)]
        quantized = [name for name in node.input if file.pair(name) is not None]
        if convolved and not quantized:
            yield f"no branch of {_label(node)} is quantized"
        if any(_only_for(file, name, node) for name in quantized) and len(quantized) == 2:
            yield f"both branches of {_label(node)} are quantized, and a convolution could have taken it in"


def _is_convolved(file: _File, name: str) -> bool:
    node = file.maker.get(name)
    alone = len(file.readers.get(name, [])) == 1 and name not in file.outputs
    return alone and node is not None and node.op_type == "Conv" and file.integer_weight(node) is not None


def _only_for(file: _File, name: str, addition: onnx.NodeProto) -> bool:
    """Whether a quantized branch is a convolution that nothing but this addition reads."""
    pair = file.pair(name)
    quantize = file.maker.get(pair.input[0]) if pair is not None else None
    if quantize is None or len(file.readers.get(name, [])) != 1 or addition not in file.readers[name]:
        return False
    return _is_convolved(file, quantize.input[0])


def shared(file: _File, target: Target) -> Iterator[str]:
    """The quantized inputs of a concatenation have the scale of its output, where the target asks for it."""
    if Kind.CONCATENATE not in target.shared_scales:
        return
    for node in file.of("Concat"):
        pairs = [file.pair(name) for name in node.input]
        after = [reader for reader in file.readers.get(node.output[0], []) if reader.op_type == QUANTIZE]
        if any(pair is None for pair in pairs) or not after:
            continue
        scales = {float(file.array(item.input[1]).item()) for item in (*pairs, *after) if item is not None}
        if len(scales) > 1:
            yield f"{_label(node)} joins {len(scales)} different scales"


RULES: tuple[Callable[[_File, Target], Iterator[str]], ...] = (
    domains,
    activations,
    operands,
    chains,
    weights,
    biases,
    outputs,
    additions,
    shared,
)


def _scale_faults(node: onnx.NodeProto, scales: NDArray[np.generic]) -> Iterator[str]:
    numbers = scales.astype(np.float64)
    if not (np.isfinite(numbers).all() and (numbers > 0.0).all()):
        yield f"a scale of {_label(node)} is not a positive number"


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "MatMul":
        return rank - 1
    return 0 if node.op_type == "Conv" or _attribute(node, "transB", 0) else 1


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((item.i for item in node.attribute if item.name == name), default)


def _label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.output[0] if node.output else node.name!r}"

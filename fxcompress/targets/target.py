"""What a runtime can do, as data that plans are made from.

A target names the kinds of operator (:class:`~fxcompress.ops.quantization.Kind`) that have an integer
kernel, the integers that each operand may have (:class:`Scheme`), what a kernel takes in beside its own
operator, which tensors must have one scale, and where its files can be timed. Nothing here is code: a user
writes a target by filling in the fields (`docs/targets.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fxcompress.errors import InputError
from fxcompress.ops.quantization import Kind

DTYPES = ("uint8", "int8")
BITS = (7, 8)


@dataclass(frozen=True)
class Scheme:
    """The integers that an operand may have.

    Args:
        dtype: `"uint8"` or `"int8"`.
        symmetric: the zero point is 0; int8 then covers `-c..c`.
        per_channel: one scale per output channel, along the axis that the operator's row names; else one.
        bits: how many of the 8 bits may be used. Seven where a kernel's intermediate sums would saturate.
    """

    dtype: str = "uint8"
    symmetric: bool = False
    per_channel: bool = False
    bits: int = 8

    def __str__(self) -> str:
        zero = "symmetric" if self.symmetric else "with a zero point"
        per = " per channel" if self.per_channel else ""
        return f"{self.dtype}{per} {zero}" + ("" if self.bits == 8 else f" in {self.bits} bits")

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.bits not in BITS:
            raise InputError(f"an operand has 7 or 8 bits, not {self.bits!r}")

    @property
    def signed(self) -> bool:
        """Whether negative integers exist."""
        return self.dtype == "int8"


ASYMMETRIC = Scheme("uint8")
SYMMETRIC = Scheme("int8", symmetric=True)
PER_CHANNEL = Scheme("int8", symmetric=True, per_channel=True)


@dataclass(frozen=True)
class Kernel:
    """An integer kernel.

    Args:
        name: the operator that the runtime's optimised graph shows.
        writes_integers: the kernel exists only with a quantized output; else it can hand out floats, and
            its output is quantized only for readers that want integers.
        absorbs: a rectifier that follows is part of the kernel, since the output's range ends where it
            would clamp.
        integer_bias: the bias is added to the integer accumulator and must be int32; else it stays in float.
        quantized_name: what it is called where its output is quantized, if that differs.
        weights: the scheme of its weight, where it is not the target's.
        activations: the scheme of what it reads, and of what it writes where it writes nothing but integers,
            if that is not the target's. A tensor has one scheme: of two operators that want it in different
            ones, the later stays in float.
    """

    name: str
    writes_integers: bool = True
    absorbs: bool = True
    integer_bias: bool = False
    quantized_name: str | None = None
    weights: Scheme | None = None
    activations: Scheme | None = None


@dataclass(frozen=True)
class Target:
    """A runtime on this machine.

    Args:
        name: how a user asks for it.
        channel_block: channels are processed in blocks of this many; narrower ones cost as much.
        kernels: the kinds of operator that have an integer kernel.
        batched_linear: the kernel of a linear that is lowered to a matrix product and an addition.
        float_reasons: why the other kinds stay in float.
        activations: the integers of activations; per tensor in every runtime known.
        weights: the integers of weights: symmetric.
        narrowest_group: grouped convolutions with fewer input channels per group are faster in float
            (depthwise, one channel per group, is a kernel of its own and not meant).
        requantizes_constants: the runtime quantizes the float weight of a convolution or Gemm by itself
            when it stands between a dequantize and a quantize node; a plan must prevent that where it means
            float.
        fuses_addition: an addition of two activations is part of the convolution or linear before it, which
            hands it the accumulator: the other branch alone is quantized.
        repeats_pairs: layout runs on integers only between two pairs; else the runtime moves a
            dequantization through it by itself, and a pair before layout serves its readers.
        requantizes_freely: an integer kernel hands out floats or integers at the same cost, so that what
            stands between two contractions runs in integers where it can.
        shared_scales: kinds whose inputs must have the scale of their output (concatenation).
        integer_tables: lookups read int8 tables, which large ones are then stored as.
        refused: modes of quantization whose operators the runtime does not read, each with the reason.
        domains: operator domains beside ONNX's own that it reads.
        forms: names of the lowering forms that are written for it.
        features: what of the CPU or GPU decided about this description.
        runtime: the runtime on this machine that times its files: "onnxruntime", "openvino", or None where
            nothing at hand is like the target.
        evidence: where the claims come from.
    """

    name: str
    channel_block: int
    kernels: Mapping[Kind, Kernel]
    batched_linear: Kernel
    float_reasons: Mapping[Kind, str] = field(default_factory=dict)
    activations: Scheme = ASYMMETRIC
    weights: Scheme = PER_CHANNEL
    narrowest_group: int = 0
    requantizes_constants: bool = False
    fuses_addition: bool = False
    repeats_pairs: bool = True
    requantizes_freely: bool = False
    shared_scales: frozenset[Kind] = frozenset()
    integer_tables: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    domains: frozenset[str] = frozenset()
    forms: frozenset[str] = frozenset()
    features: tuple[str, ...] = ()
    runtime: str | None = None
    evidence: str = ""

    def __post_init__(self) -> None:
        for scheme in self.activation_schemes:
            _check_activations(scheme)
        for kind in (Kind.LAYOUT, Kind.PAD):
            if kind in self.kernels and self.kernels[kind].activations is not None:
                raise InputError(f"{kind} has the scheme of what it reads, and none of its own")
        if Kind.HARD_SIGMOID in self.kernels and self.activation_schemes != {ASYMMETRIC}:
            raise InputError("a hard sigmoid is the clamping of uint8 with a zero point, in any activation")
        for scheme in (self.weights, *(kernel.weights for kernel in self._all() if kernel.weights)):
            if not (scheme.signed and scheme.symmetric):
                raise InputError("weights are symmetric int8: other forms have no fast kernel")
        unbounded = self.shared_scales - {Kind.CONCATENATE, Kind.AVERAGE, Kind.GLOBAL_AVERAGE}
        if unbounded:
            raise InputError(f"one scale cannot cover inputs and output of {', '.join(sorted(unbounded))}")

    def _all(self) -> tuple[Kernel, ...]:
        return (*self.kernels.values(), self.batched_linear)

    def kernel(self, kind: Kind, *, batched: bool = False) -> Kernel:
        """Return the kernel of a kind that has one; of the batched form of a linear where asked for."""
        return self.batched_linear if batched else self.kernels[kind]

    def weight_scheme(self, kind: Kind, *, batched: bool = False) -> Scheme:
        """Return the scheme of the weight of a convolution or linear."""
        return self.kernel(kind, batched=batched).weights or self.weights

    def activation_scheme(self, kind: Kind, *, batched: bool = False) -> Scheme:
        """Return the scheme of the activations of an operator."""
        return self.kernel(kind, batched=batched).activations or self.activations

    @property
    def activation_schemes(self) -> frozenset[Scheme]:
        """Every scheme that an activation may have."""
        own = (kernel.activations for kernel in self._all())
        return frozenset((self.activations, *(scheme for scheme in own if scheme is not None)))

    @property
    def uniform(self) -> bool:
        """Whether all activations have one scheme."""
        return len(self.activation_schemes) == 1

    @property
    def weight_bits(self) -> int:
        """Bits that an int8 weight may use before a kernel's intermediate sums saturate."""
        return self.weights.bits

    @property
    def weight_limit(self) -> int:
        """The largest magnitude of a stored weight: 127 with 8 bits, 64 with 7."""
        return limit_of(self.weights)

    @property
    def timed(self) -> bool:
        """Whether ONNX Runtime's times on this machine say what is fast on this target."""
        return self.runtime == "onnxruntime"


def _check_activations(scheme: Scheme) -> None:
    if scheme.per_channel:
        raise InputError("activations have one scale per tensor: no runtime knows another form")
    if scheme.bits != 8:
        raise InputError("activations use all 8 bits: where sums would saturate, weights have 7")
    if scheme.symmetric and not scheme.signed:
        raise InputError("symmetric activations are int8: negative values have no uint8 around zero")


def limit_of(scheme: Scheme) -> int:
    """Return the largest magnitude of a symmetric integer: 127 with 8 bits, 64 with 7."""
    return 127 if scheme.bits == 8 else 2 ** (scheme.bits - 1)

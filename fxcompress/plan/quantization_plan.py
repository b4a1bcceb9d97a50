"""The quantization plan: the precision of every operator and the scheme of every quantized tensor, as
frozen data.

Names are the program's node names for operators and activations, and the user's parameter names for
weights. A plan prints as a table and goes through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

import numpy as np

from fxcompress.errors import InputError, NotSupported
from fxcompress.numerics.affine import Affine, as_float32

MODES = ("int8", "int8-dynamic", "int8-weights", "int4-weights", "float16", "bfloat16")
PRECISIONS = ("auto", "full")
CALIBRATORS = ("auto", "minmax", "average", "percentile", "mse", "entropy")
WEIGHT_RANGES = ("minmax", "mse")
ROUNDINGS = ("nearest", "adaptive")
_CHOICES = {
    "precision": PRECISIONS,
    "calibrator": CALIBRATORS,
    "weight_range": WEIGHT_RANGES,
    "rounding": ROUNDINGS,
}


@dataclass(frozen=True)
class Quantize:
    """What the user asks for.

    Args:
        mode: `"int8"`, static: uint8 activations by calibrated ranges and int8 weights. `"int8-dynamic"`:
            ranges of activations are found at run time. `"int8-weights"`, `"int4-weights"`: only weights of
            large linears are stored as integers. `"float16"`, `"bfloat16"`: shorter floats.
        precision: `"full"` runs in the mode all that can; `"auto"` tries float, full and mixtures of both,
            and takes the best that was measured.
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
        calibrator: how ranges follow from calibration data: `"minmax"`, `"average"` (moving, of minima and
            maxima), `"percentile"`, `"mse"`, `"entropy"`; `"auto"` is min-max or mse, whichever leaves the
            outputs closer on a few samples.
        weight_range: how scales of weights are found: `"minmax"`, or `"mse"`, the scale of the least squared
            error.
        equalize: balance the channels of successive layers first; None does where it helps.
        smooth: move the scales of outlier channels from activations into weights; None does where it helps.
        correct_bias: correct biases for the mean error that quantization leaves; None does where it helps.
        rounding: of weights, `"nearest"`, or `"adaptive"`: up or down, whichever keeps the outputs.
        block_size: weights per scale, where only weights are quantized.
    """

    mode: str = "int8"
    precision: str = "auto"
    exclude: tuple[str, ...] = ()
    calibrator: str = "auto"
    weight_range: str = "minmax"
    equalize: bool | None = None
    smooth: bool | None = None
    correct_bias: bool | None = None
    rounding: str = "nearest"
    block_size: int = 32

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise NotSupported(f"there is no mode {self.mode!r}", hint=f"the modes are: {', '.join(MODES)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("equalize", "smooth", "correct_bias"):
            if getattr(self, name) not in (None, True, False):
                raise InputError(f"{name} is True, False or None, not {getattr(self, name)!r}")
        iterable = isinstance(self.exclude, Iterable) and not isinstance(self.exclude, str)
        if not iterable or not all(isinstance(item, str) for item in self.exclude):
            raise InputError(f"exclude is a list of patterns, not {self.exclude!r}")
        size = self.block_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 16 or size & (size - 1):
            raise InputError(f"block_size is a power of two from 16 on, not {size!r}")

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges must be measured before anything can be quantized."""
        return self.mode == "int8"


@dataclass(frozen=True)
class ActivationScheme:
    """The 8-bit form of an activation, `dtype` "uint8" or "int8".

    `shares` names the tensor whose scale this one has, where it is not its own: layout keeps scales.
    `read_as` is the scale and zero point that readers take the integers by, where it is another than they
    were made by: a hard sigmoid is clamping, which quantization does.
    """

    scale: float
    zero_point: int
    shares: str | None = None
    dtype: str = "uint8"
    read_as: tuple[float, int] | None = None

    @property
    def affine(self) -> Affine:
        """The scheme as numbers."""
        low = -128 if self.dtype == "int8" else 0
        return Affine(self.scale, self.zero_point, low, low + 255)

    @property
    def read(self) -> Affine:
        """What readers take the integers by."""
        scale, zero_point = self.read_as or (self.scale, self.zero_point)
        return Affine(scale, zero_point, self.affine.low, self.affine.high)


@dataclass(frozen=True)
class WeightScheme:
    """The int8 form of a weight: symmetric, integers `-limit..limit`; one scale per channel along `axis`, or
    one for all (None).
    """

    axis: int | None
    limit: int
    scales: tuple[float, ...]


@dataclass(frozen=True)
class BiasScheme:
    """The int32 form of an operator's bias: one scale per channel; `parameter` None stands for a bias of
    zeros.
    """

    parameter: str | None
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Declined:
    """An operator that stays in float, and why."""

    node: str
    reason: str
    source: str | None = None


@dataclass(frozen=True)
class QuantizationPlan:
    """Decisions only; `QuantizeTensors` carries them out.

    Args:
        target: the name of the target it was made for.
        kernels: the operators that run in int8, each with the kernel its runtime should show; `""` for
            those that have none of their own (absorbed rectifiers, layout).
        activations: the quantized tensors by node name. `NODE_gate` is the gate that a self-gated activation
            multiplies its input with.
        integer_only: the quantized tensors whose float readers read the dequantized value.
        weights: by parameter name.
        biases: by operator.
        declined: the operators that stay in float.
        guarded: float convolutions that read what an integer kernel made, and that the runtime would quantize
            by itself: it does not where the scale of their input is stated by channel, all channels alike.
        mode: of quantization; in others than "int8", a pass of its own knows the tensors.
    """

    target: str
    kernels: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, ActivationScheme] = field(default_factory=dict)
    integer_only: tuple[str, ...] = ()
    weights: Mapping[str, WeightScheme] = field(default_factory=dict)
    biases: Mapping[str, BiasScheme] = field(default_factory=dict)
    declined: tuple[Declined, ...] = ()
    mode: str = "int8"
    guarded: tuple[str, ...] = ()

    @property
    def precision(self) -> dict[str, str]:
        """Return "int8" (or "int4") or "float" for every operator that was considered."""
        return {
            **dict.fromkeys(self.kernels, self.mode.split("-")[0]),
            **{item.node: "float" for item in self.declined},
        }

    def with_lookups(self, lookups: Collection[str]) -> Self:
        """The same, with lookups that read int8 tables; they have no kernel of their own."""
        return replace(
            self,
            kernels={**self.kernels, **dict.fromkeys(lookups, "")},
            declined=tuple(item for item in self.declined if item.node not in lookups),
        )

    @property
    def intended(self) -> dict[str, str]:
        """Return the operators that should show as an integer kernel in the runtime, with that kernel's
        name.
        """
        return {node: kernel for node, kernel in self.kernels.items() if kernel}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; scales are written with the digits that a float32 has."""
        data = {part.name: getattr(self, part.name) for part in fields(self)}
        data["activations"] = {name: _plain(scheme) for name, scheme in self.activations.items()}
        data["weights"] = {name: _plain(scheme) for name, scheme in self.weights.items()}
        data["biases"] = {name: _plain(scheme) for name, scheme in self.biases.items()}
        data["declined"] = [asdict(item) for item in self.declined]
        return (
            data
            | {"kernels": dict(self.kernels), "integer_only": list(self.integer_only)}
            | {"guarded": list(self.guarded)}
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a plan from :meth:`to_dict`'s data.

        Raises:
            InputError: the data is not a quantization plan.
        """
        try:
            return cls(
                target=data["target"],
                kernels=dict(data["kernels"]),
                activations={name: _activation(item) for name, item in data["activations"].items()},
                integer_only=tuple(data["integer_only"]),
                weights={
                    name: WeightScheme(item["axis"], item["limit"], _floats(item["scales"]))
                    for name, item in data["weights"].items()
                },
                biases={
                    name: BiasScheme(item["parameter"], _floats(item["scales"]))
                    for name, item in data["biases"].items()
                },
                declined=tuple(Declined(**item) for item in data["declined"]),
                guarded=tuple(data.get("guarded", ())),
                mode=str(data.get("mode", "int8")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a quantization plan: {error!r}") from error

    def __str__(self) -> str:
        tensors = self._tensors() if self.activations or self.weights else []
        return "\n".join([self._headline(), *self._operators(), *tensors, *self._declined()])

    def _headline(self) -> str:
        if self.mode != "int8":
            return (
                f"{self.mode} for {self.target}: {len(self.kernels)} operators, {len(self.declined)} in float"
            )
        return (
            f"int8 for {self.target}: {len(self.kernels)} operators in int8, {len(self.declined)} in float, "
            f"{len(self.activations)} activations, {len(self.weights)} weights"
        )

    def _operators(self) -> list[str]:
        width = max((len(name) for name in self.kernels), default=0)
        return [
            f"  {name:{width}}  {kernel or '(no kernel of its own)'}" for name, kernel in self.kernels.items()
        ]

    def _tensors(self) -> list[str]:
        lines = ["activations"]
        width = max((len(name) for name in self.activations), default=0)
        for name, scheme in self.activations.items():
            low, high = scheme.affine.range
            note = f"  as {scheme.shares}" if scheme.shares else ""
            lines.append(f"  {name:{width}}  [{low:.4g}, {high:.4g}] zero {scheme.zero_point}{note}")
        lines.append("weights")
        width = max((len(name) for name in self.weights), default=0)
        for name, weight in self.weights.items():
            low, high = min(weight.scales), max(weight.scales)
            lines.append(
                f"  {name:{width}}  {_along(weight)}, scales {low:.3g} to {high:.3g}, +-{weight.limit}"
            )
        return lines

    def _declined(self) -> list[str]:
        if not self.declined:
            return []
        width = max(len(item.node) for item in self.declined)
        lines = [
            f"  {item.node:{width}}  {item.reason}" + (f"  [{item.source}]" if item.source else "")
            for item in self.declined
        ]
        return ["float", *lines]


def _activation(item: Mapping[str, Any]) -> ActivationScheme:
    dtype = item.get("dtype", "uint8")  # plans of the first release do not say
    read = item.get("read_as")
    read_as = None if read is None else (as_float32(read[0]), int(read[1]))
    return ActivationScheme(as_float32(item["scale"]), item["zero_point"], item["shares"], dtype, read_as)


def _plain(scheme: ActivationScheme | WeightScheme | BiasScheme) -> dict[str, Any]:
    data = asdict(scheme)
    if "scale" in data:
        data["scale"] = _digits(data["scale"])
    if data.get("read_as"):
        data["read_as"] = [_digits(data["read_as"][0]), data["read_as"][1]]
    if "scales" in data:
        data["scales"] = [_digits(scale) for scale in data["scales"]]
    return data


def _along(weight: WeightScheme) -> str:
    return "per tensor" if weight.axis is None else f"axis {weight.axis}"


def _digits(scale: float) -> float:
    """Return the shortest decimal that rounds to the same float32."""
    return float(str(np.float32(scale)))


def _floats(scales: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.asarray(scales, dtype=np.float32).astype(float).tolist())

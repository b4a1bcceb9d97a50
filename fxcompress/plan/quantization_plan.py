"""The quantization plan: the precision of every operator and the scheme of every quantized tensor, as
frozen data.

Names are the program's node names for operators and activations, and the user's parameter names for
weights. A plan prints as a table and goes through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np

from fxcompress.errors import InputError, NotSupported
from fxcompress.numerics.affine import Affine, as_float32

SCHEMES = ("int8",)
PRECISIONS = ("auto", "full")


@dataclass(frozen=True)
class Quantize:
    """What the user asks for.

    Args:
        scheme: `"int8"`, static uint8 activations and int8 weights.
        precision: `"full"` runs in int8 all that can; `"auto"` leaves to the target what pays.
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
    """

    scheme: str = "int8"
    precision: str = "auto"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise NotSupported(
                f"there is no scheme {self.scheme!r}", hint=f"the schemes are: {', '.join(SCHEMES)}"
            )
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")


@dataclass(frozen=True)
class ActivationScheme:
    """The uint8 form of an activation.

    `shares` names the tensor whose scale this one has, where it is not its own: layout keeps scales.
    """

    scale: float
    zero_point: int
    shares: str | None = None

    @property
    def affine(self) -> Affine:
        """The scheme as numbers."""
        return Affine(self.scale, self.zero_point)


@dataclass(frozen=True)
class WeightScheme:
    """The int8 form of a weight: symmetric, one scale per channel along `axis`, integers `-limit..limit`."""

    axis: int
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
    """

    target: str
    kernels: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, ActivationScheme] = field(default_factory=dict)
    integer_only: tuple[str, ...] = ()
    weights: Mapping[str, WeightScheme] = field(default_factory=dict)
    biases: Mapping[str, BiasScheme] = field(default_factory=dict)
    declined: tuple[Declined, ...] = ()

    @property
    def precision(self) -> dict[str, str]:
        """Return "int8" or "float" for every operator that was considered."""
        return {**dict.fromkeys(self.kernels, "int8"), **{item.node: "float" for item in self.declined}}

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
        return data | {"kernels": dict(self.kernels), "integer_only": list(self.integer_only)}

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
                activations={
                    name: ActivationScheme(as_float32(item["scale"]), item["zero_point"], item["shares"])
                    for name, item in data["activations"].items()
                },
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a quantization plan: {error!r}") from error

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._operators(), *self._tensors(), *self._declined()])

    def _headline(self) -> str:
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
                f"  {name:{width}}  axis {weight.axis}, scales {low:.3g} to {high:.3g}, +-{weight.limit}"
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


def _plain(scheme: ActivationScheme | WeightScheme | BiasScheme) -> dict[str, Any]:
    data = asdict(scheme)
    if "scale" in data:
        data["scale"] = _digits(data["scale"])
    if "scales" in data:
        data["scales"] = [_digits(scale) for scale in data["scales"]]
    return data


def _digits(scale: float) -> float:
    """Return the shortest decimal that rounds to the same float32."""
    return float(str(np.float32(scale)))


def _floats(scales: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.asarray(scales, dtype=np.float32).astype(float).tolist())

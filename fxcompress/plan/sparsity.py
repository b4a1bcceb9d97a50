"""Which single weights are zeroed: masks as data.

What masks do and do not: the weights they name are zero, and nothing else changes. A dense kernel multiplies
by zeros as by any number and a dense file stores them, so neither latency nor file size shrinks; only a
runtime with sparse kernels, or a compressed file, gains. `STATEMENT` says so wherever masks are reported.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from numbers import Real
from typing import Any, Self

import numpy as np
import torch

from fxcompress.errors import InputError

STATEMENT = (
    "zeroed weights stay stored and are multiplied like any other: dense kernels run no faster and the file "
    "is no smaller; channels that are removed (prune=) shrink both"
)
SCOPES = ("global", "local")
SALIENCIES = ("magnitude", "random")
_N_OF_M = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Sparsify:
    """How many weights to zero, and by which rules.

    Args:
        ratio: the share of the chosen weights to zero, between 0 and 1 (exclusive); 0.5 where none is given.
            An N:M pattern states its own share: leave it out there.
        pattern: `"unstructured"`, or `"2:4"`, `"1:4"`, ...: of every 4 consecutive weights along the
            dimension that is summed over, 2 stay (Mishra et al., "Accelerating Sparse Deep Neural Networks",
            2021).
        scope: `"global"`, one ranking for all weights; `"local"`, the same share of each tensor. A pattern
            is always local.
        saliency: `"magnitude"` or `"random"`.
        layers: patterns (`fnmatch`) of parameter names that are sparsified.
        protect: patterns (`fnmatch`) of parameter names that stay dense.
        seed: of the random saliency.
    """

    ratio: float | None = None
    pattern: str = "unstructured"
    scope: str = "global"
    saliency: str = "magnitude"
    layers: tuple[str, ...] = ("*",)
    protect: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ratio is not None and not (isinstance(self.ratio, Real) and 0 < self.ratio < 1):
            raise InputError(f"ratio={self.ratio!r} is not a share between 0 and 1", hint="0.5 zeroes half")
        if self.pattern != "unstructured":
            self._check_pattern()
        for name, patterns in (("layers", self.layers), ("protect", self.protect)):
            if not isinstance(patterns, tuple | list) or not all(isinstance(item, str) for item in patterns):
                raise InputError(
                    f"{name}={patterns!r} is no tuple of patterns",
                    hint=f'write {name}=("block.*",), with a comma',
                )
        for name, value, choices in (
            ("scope", self.scope, SCOPES),
            ("saliency", self.saliency, SALIENCIES),
        ):
            if value not in choices:
                raise InputError(
                    f"{name}={value!r} is not one of {', '.join(choices)}",
                    hint=f"leave out for {choices[0]!r}",
                )

    def _check_pattern(self) -> None:
        counts = self.counts
        if counts is None or not 0 < counts[0] < counts[1]:
            raise InputError(
                f"pattern={self.pattern!r} is neither 'unstructured' nor N:M with 0 < N < M",
                hint="'2:4' keeps two of every four",
            )
        if self.ratio is not None and abs(self.ratio - (1 - counts[0] / counts[1])) > 1e-12:
            raise InputError(
                f"the pattern {self.pattern} zeroes {1 - counts[0] / counts[1]:.1%}, not ratio={self.ratio}",
                hint="leave ratio out",
            )

    @property
    def counts(self) -> tuple[int, int] | None:
        """N and M of a pattern; None for unstructured masks."""
        found = _N_OF_M.fullmatch(self.pattern)
        return None if found is None else (int(found[1]), int(found[2]))

    @property
    def share(self) -> float:
        """The share of the chosen weights that goes."""
        if self.counts is not None:
            return 1 - self.counts[0] / self.counts[1]
        return 0.5 if self.ratio is None else float(self.ratio)


@dataclass(frozen=True)
class SparsityPlan:
    """Which weights stay.

    Args:
        masks: by parameter name, a boolean tensor of its shape; true stays.
        declined: by parameter name, why a chosen tensor stays dense.
        total: the number of stored trainable weights of the program, dense ones included.
    """

    masks: Mapping[str, torch.Tensor]
    declined: Mapping[str, str]
    total: int

    @property
    def zeroed(self) -> int:
        """How many weights the masks zero."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    def density(self, name: str) -> float:
        """The share of a tensor that stays."""
        return float(self.masks[name].double().mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, masks as packed bits in base64; `from_dict` reads it back."""
        return {
            "masks": {
                name: {
                    "shape": list(mask.shape),
                    "bits": base64.b64encode(np.packbits(mask.numpy()).tobytes()).decode("ascii"),
                }
                for name, mask in self.masks.items()
            },
            "declined": dict(self.declined),
            "total": self.total,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises InputError for other data."""
        try:
            masks = {name: _unpacked(item["shape"], item["bits"]) for name, item in data["masks"].items()}
            return cls(masks, dict(data["declined"]), int(data["total"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is not a sparsity plan: {type(error).__name__}: {error}",
                hint="pass what `SparsityPlan.to_dict` returned",
            ) from error

    def __str__(self) -> str:
        lines = [f"{self.zeroed} of {self.total} weights are zeroed; {STATEMENT}"]
        for name, mask in self.masks.items():
            lines.append(f"  {name}: {int(mask.sum())} of {mask.numel()} stay ({self.density(name):.1%})")
        lines.extend(f"  {name}: dense, {reason}" for name, reason in self.declined.items())
        return "\n".join(lines)


def _unpacked(shape: list[int], bits: str) -> torch.Tensor:
    packed = np.frombuffer(base64.b64decode(bits, validate=True), dtype=np.uint8)
    count = prod(shape)
    if not 0 <= packed.size * 8 - count < 8:
        raise ValueError(f"{packed.size} bytes do not hold a mask of shape {shape}")
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool)).reshape(shape)

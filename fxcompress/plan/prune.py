"""What a caller may ask of pruning: options that check themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from fxcompress.analysis.groups import Group
from fxcompress.errors import InputError
from fxcompress.numerics.saliency import Saliency, as_saliency
from fxcompress.plan.budget_options import Budget

SCOPES = ("global", "group", "kind")
FACTORS = ("largest", "outer", "inner", "both")
DEFAULT_RATIO = 0.5

Protection: TypeAlias = str | type[nn.Module] | Callable[[Group], bool]
Loss: TypeAlias = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Prune:
    """How much to remove, and by which rules.

    Args:
        ratio: the share of MACs to remove, between 0 and 1 (exclusive); 0.5 where neither it nor `budget` nor
            `ratios` is given.
        budget: upper bounds on what may remain, several at once.
        saliency: how indices are ranked: a kind such as `"l2"` or `"taylor"`, or `Saliency(...)`.
        scope: what is ranked together: `"global"`, all groups; `"group"`, each group alone (about the same
            share of each goes, but for alignment: a block is a larger share of a narrow group, and groups
            step one after the other; `block=1` gives the same share); `"kind"`, groups of the same shape and
            role together (likewise).
        block: widths become multiples of this; None takes the target's channel block.
        max_ratio: the largest share of one group that may go.
        min_ratio: the smallest share that goes of every group that is not protected.
        min_width: the fewest indices that any group keeps.
        ratios: by pattern (`fnmatch`) of parameter names, the share that goes of the groups whose channels
            they make (of those they read, where they make none), whatever the ranking says; 0 keeps them
            whole. A share wins over `protect`, unless its pattern names nothing (`*`), and must stay within
            `max_ratio` and `min_width`. Of heads x head width it goes of what `factors` chooses, unless the
            name of one group, such as `query.weight[0]:0`, says which.
        factors: which factors of a product such as heads x head width may go: the `"largest"`, the `"outer"`
            (heads), the `"inner"` (head width) or `"both"`.
        protect: what stays whole: patterns (`fnmatch`) of parameter names, module types or their names, or
            predicates on groups. Every matching tensor stays whole, so the channels that it reads stay too.
        protect_embeddings: keep the widths of indexed tables and all that is tied to them.
        compensate: re-fit all layers to the original on calibration data, and in `optimize` the statistics of
            batch norms where that helps; None does so when there is any data.
        loss: `loss(outputs, label) -> scalar` for saliencies that need gradients.
    """

    ratio: float | None = None
    budget: Budget | None = None
    saliency: str | Saliency = "l2"
    scope: str = "global"
    block: int | None = None
    max_ratio: float = 0.9
    min_ratio: float = 0.0
    min_width: int = 1
    ratios: Mapping[str, float] = field(default_factory=dict)
    factors: str = "largest"
    protect: Sequence[Protection] = ()
    protect_embeddings: bool = True
    compensate: bool | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if self.ratio is None and self.budget is None and not self.ratios:
            object.__setattr__(self, "ratio", DEFAULT_RATIO)
        self._check_amounts()
        self._check_widths()
        as_saliency(self.saliency)
        for name, value, choices in (("scope", self.scope, SCOPES), ("factors", self.factors, FACTORS)):
            if value not in choices:
                raise InputError(
                    f"{name}={value!r} is not one of {', '.join(choices)}",
                    hint=f"leave out for {choices[0]!r}",
                )
        self._check_protection()
        for name in ("ratio", "block", "max_ratio", "min_ratio", "min_width"):
            object.__setattr__(self, name, _builtin(getattr(self, name)))
        object.__setattr__(
            self, "ratios", {pattern: _builtin(share) for pattern, share in self.ratios.items()}
        )

    @property
    def criterion(self) -> Saliency:
        """The saliency with all its options."""
        return as_saliency(self.saliency)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for reports; functions and types by their names."""
        data = {part.name: getattr(self, part.name) for part in fields(self)}
        data["saliency"] = self.saliency if isinstance(self.saliency, str) else asdict(self.saliency)
        data["budget"] = None if self.budget is None else asdict(self.budget)
        data["ratios"] = dict(self.ratios)
        data["protect"] = [item if isinstance(item, str) else _named(item) for item in self.protect]
        data["loss"] = None if self.loss is None else _named(self.loss)
        return data

    def _check_amounts(self) -> None:
        if self.ratio is not None and not (_share(self.ratio) and 0 < self.ratio < 1):
            raise InputError(
                f"prune={self.ratio!r} is not a share of the MACs between 0 and 1",
                hint="prune=0.5 removes half of the multiply-accumulates; leave it out to remove none",
            )
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise InputError(
                f"budget={self.budget!r} is no Budget", hint='Budget(macs="50%", params=1_000_000)'
            )
        if not isinstance(self.ratios, Mapping):
            raise InputError(f"ratios={self.ratios!r} is no mapping", hint='ratios={"layer1.*": 0.3}')
        for pattern, share in self.ratios.items():
            if not (isinstance(pattern, str) and _share(share) and 0 <= share < 1):
                raise InputError(
                    f"ratios: {pattern!r}: {share!r} is not a pattern and a share from 0 to below 1",
                    hint='ratios={"layer1.*": 0.3} removes 30 % of the groups of layer1, 0 keeps them whole',
                )

    def _check_widths(self) -> None:
        if not (_share(self.max_ratio) and 0 < self.max_ratio < 1):
            raise InputError(
                f"max_ratio={self.max_ratio!r} is not between 0 and 1", hint="0.9 keeps a tenth of each group"
            )
        if not (_share(self.min_ratio) and 0 <= self.min_ratio <= self.max_ratio):
            raise InputError(
                f"min_ratio={self.min_ratio!r} is not between 0 and max_ratio={self.max_ratio}",
                hint="0.1 removes at least a tenth of each group",
            )
        if self.block is not None and not _width(self.block):
            raise InputError(
                f"block={self.block!r} is not a positive width", hint="16 suits AVX-512, 8 AVX2, 1 any width"
            )
        if not _width(self.min_width):
            raise InputError(
                f"min_width={self.min_width!r} is not a positive width",
                hint="8 keeps at least 8 of each group",
            )

    def _check_protection(self) -> None:
        if isinstance(self.protect, str) or not isinstance(self.protect, Sequence):
            raise InputError(
                f"protect={self.protect!r} is no tuple", hint='write protect=("layer1.*",), with a comma'
            )
        for item in self.protect:
            if not (isinstance(item, str) or callable(item)):
                raise InputError(
                    f"protect: {item!r} is neither a pattern, a module type nor a predicate",
                    hint='"layer1.*", nn.Conv2d, "Conv2d" and lambda group: group.size < 32 are',
                )
        for name, value in (("loss", self.loss),):
            if value is not None and not callable(value):
                raise InputError(f"{name}={value!r} is no function", hint="loss(outputs, label) -> scalar")
        if not (self.compensate is None or isinstance(self.compensate, bool)):
            raise InputError(
                f"compensate={self.compensate!r} is neither True, False nor None",
                hint="leave it out to re-fit layers wherever there is calibration data",
            )


def _share(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _width(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _builtin(value: Any) -> Any:
    """A number of numpy as one of Python, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value


def _named(item: object) -> str:
    return str(getattr(item, "__qualname__", None) or repr(item))

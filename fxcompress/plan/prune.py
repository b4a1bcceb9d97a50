"""What a caller may ask of pruning: options that check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from fxcompress.errors import InputError, NotSupported


@dataclass(frozen=True)
class Prune:
    """How much to remove, and by which rules.

    Args:
        ratio: the share of MACs to remove, between 0 and 1 (exclusive).
        saliency: how indices are ranked; `"l2"`.
        scope: `"global"`, one ranking for all groups.
        block: widths become multiples of this; None takes the target's channel block.
        max_ratio: the largest share of one group that may go.
        protect: patterns (`fnmatch`) of parameter names whose groups stay whole.
        protect_embeddings: keep the widths of indexed tables and all that is tied to them.
    """

    ratio: float = 0.5
    saliency: str = "l2"
    scope: str = "global"
    block: int | None = None
    max_ratio: float = 0.9
    protect: tuple[str, ...] = ()
    protect_embeddings: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, Real) and 0 < self.ratio < 1):
            raise InputError(
                f"prune={self.ratio!r} is not a share of the MACs between 0 and 1",
                hint="prune=0.5 removes half of the multiply-accumulates; leave it out to remove none",
            )
        if not (isinstance(self.max_ratio, Real) and 0 < self.max_ratio < 1):
            raise InputError(
                f"max_ratio={self.max_ratio!r} is not between 0 and 1", hint="0.9 keeps a tenth of each group"
            )
        if self.block is not None and not (isinstance(self.block, int) and self.block >= 1):
            raise InputError(
                f"block={self.block!r} is not a positive width", hint="16 suits AVX-512, 8 AVX2, 1 any width"
            )
        if self.saliency != "l2":
            raise NotSupported(f"saliency {self.saliency!r} is not built", hint="built: 'l2'")
        if self.scope != "global":
            raise NotSupported(f"scope {self.scope!r} is not built", hint="built: 'global'")

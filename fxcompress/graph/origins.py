"""Where the tensors of a rewritten program come from, so that plans speak the user's names and coordinates.

A rewrite that loosens widths before analysis gives tensors new names. A *part* of a packed tensor is some
positions of one dimension of the user's tensor: what is kept of all parts, laid back, is what is kept of the
tensor. A *copy* of a table that several layers read is the whole tensor once more. Copies may be cut
differently, and then nothing about the user's one tensor can be said: copies are stated under their own
names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias

Kept: TypeAlias = Mapping[str, Mapping[int, tuple[int, ...]]]
"""By tensor and dimension, the positions that stay; a dimension that is not listed stays whole."""


@dataclass(frozen=True)
class Origin:
    """What a stored tensor is of the user's program.

    Args:
        tensor: the user's name.
        dim: the dimension that was taken apart; None for a copy of the whole tensor.
        positions: of a part, its positions in that dimension of the user's tensor, in the part's order.
    """

    tensor: str
    dim: int | None = None
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Origins:
    """The rewrites a program went through, in order, and the origin of every tensor that they named anew."""

    rewrites: tuple[str, ...] = ()
    tensors: Mapping[str, Origin] = field(default_factory=dict)

    def user(self, name: str) -> str:
        """The user's name of a tensor."""
        return self.tensors[name].tensor if name in self.tensors else name

    def title(self, name: str, dim: int) -> str:
        """A stored dimension in the user's names and coordinates, such as `qkv.weight[0][128:192]`.

        Parts have their positions behind the dimension. A copy goes by its own name: what is kept of it says
        nothing about the user's one tensor.
        """
        origin = self.tensors.get(name)
        if origin is None or origin.dim is None:
            return f"{name}[{dim}]"
        return f"{origin.tensor}[{dim}]" + (_ranges(origin.positions) if dim == origin.dim else "")

    def adding(self, rewrite: str, tensors: Mapping[str, Origin]) -> Origins:
        """After one more rewrite; its origins may name tensors that have an origin themselves."""
        made = {name: self._composed(origin) for name, origin in tensors.items()}
        rewrites = self.rewrites if rewrite in self.rewrites else (*self.rewrites, rewrite)
        return Origins(rewrites, {**self.tensors, **made})

    def _composed(self, origin: Origin) -> Origin:
        """The origin in the user's terms; a part of a part cut elsewhere is no positions of one dimension."""
        inner = self.tensors.get(origin.tensor)
        if inner is None:
            return origin
        if origin.dim is None or origin.dim != inner.dim:
            return Origin(inner.tensor)
        return replace(inner, positions=tuple(inner.positions[place] for place in origin.positions))

    def only(self, names: Iterable[str]) -> Origins:
        """Without the tensors that are not among `names`."""
        known = set(names)
        return replace(self, tensors={name: item for name, item in self.tensors.items() if name in known})

    def stated(self, kept: Kept) -> tuple[Kept, Kept]:
        """What is kept of the user's tensors, and what is kept of copies under their own names."""
        copies = {name: dims for name, dims in kept.items() if self._copied(name)}
        whole = {name: dims for name, dims in kept.items() if name not in self.tensors}
        for user in dict.fromkeys(self.user(name) for name in kept if name not in copies):
            if parts := self._parts(user):
                whole[user] = self._joined(parts, kept)
        return whole, copies

    def own(self, name: str, kept: Kept, copies: Kept) -> Mapping[int, tuple[int, ...]]:
        """The inverse of `stated` for one tensor: what is kept of it, in its own coordinates."""
        origin = self.tensors.get(name)
        if origin is None:
            return kept.get(name, {})
        if origin.dim is None:
            return copies.get(name, {})
        dims = dict(kept.get(origin.tensor, {}))
        if origin.dim in dims:
            stay = set(dims[origin.dim])
            found = tuple(place for place, position in enumerate(origin.positions) if position in stay)
            dims[origin.dim] = found
        return {
            dim: stay for dim, stay in dims.items() if dim != origin.dim or len(stay) < len(origin.positions)
        }

    def after(self, kept: Kept) -> Origins:
        """The origins once tensors have shrunk: positions count what is left of the user's tensor."""
        made = dict(self.tensors)
        for user in dict.fromkeys(
            origin.tensor for origin in self.tensors.values() if origin.dim is not None
        ):
            parts = self._parts(user)
            left = {name: _staying(origin, kept.get(name, {})) for name, origin in parts.items()}
            ranks = {place: rank for rank, place in enumerate(sorted(sum(left.values(), ())))}
            for name, origin in parts.items():
                made[name] = replace(origin, positions=tuple(ranks[place] for place in left[name]))
        return replace(self, tensors=made)

    def _copied(self, name: str) -> bool:
        return name in self.tensors and self.tensors[name].dim is None

    def _parts(self, user: str) -> dict[str, Origin]:
        return {
            name: item for name, item in self.tensors.items() if item.tensor == user and item.dim is not None
        }

    def _joined(self, parts: Mapping[str, Origin], kept: Kept) -> dict[int, tuple[int, ...]]:
        """What is kept of a tensor whose parts together are all of it; the other dimensions are shared."""
        cut = next(iter(parts.values())).dim
        assert cut is not None
        shared = [{dim: stay for dim, stay in kept.get(name, {}).items() if dim != cut} for name in parts]
        assert all(dims == shared[0] for dims in shared), "parts that read one input have its width"
        stay = sorted(place for name, item in parts.items() for place in _staying(item, kept.get(name, {})))
        whole = sum(len(item.positions) for item in parts.values())
        joined = shared[0] if len(stay) == whole else {**shared[0], cut: tuple(stay)}
        return dict(sorted(joined.items()))


def _ranges(positions: Sequence[int]) -> str:
    """Positions as slices: `[128:192]`, `[1::3]`, `[0:16 of every 48]`; the first one tells parts apart."""
    known = set(positions)
    starts = [place for place in positions if place - 1 not in known]
    stops = [place + 1 for place in positions if place + 1 not in known]
    lengths = {stop - start for start, stop in zip(starts, stops, strict=True)}
    steps = {after - before for before, after in pairwise(starts)}
    first = f"{starts[0]}:{stops[0]}"
    if len(starts) == 1:
        return f"[{first}]"
    if len(lengths) == len(steps) == 1:
        step = steps.pop()
        return f"[{starts[0]}::{step}]" if lengths == {1} else f"[{first} of every {step}]"
    return f"[{first} and {len(starts) - 1} more ranges]"


def _staying(origin: Origin, dims: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """The user's positions that stay of a part."""
    assert origin.dim is not None
    own = dims.get(origin.dim)
    return origin.positions if own is None else tuple(origin.positions[place] for place in own)

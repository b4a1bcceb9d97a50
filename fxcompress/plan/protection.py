"""Which prunable groups stay whole: what the user protects, embeddings, the other factors of a product."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import nn

from fxcompress.analysis.groups import Analysis, Group, rivals
from fxcompress.axes.expression import Axis, leaves
from fxcompress.errors import CompressError, InputError, first_line
from fxcompress.plan.explicit import Asked, Means
from fxcompress.plan.naming import Names
from fxcompress.plan.prune import Protection, Prune


def protection(
    analysis: Analysis, options: Prune, asked: Mapping[str, Asked] = MappingProxyType({})
) -> dict[str, str]:
    """By group name, why a prunable group stays whole.

    Args:
        analysis: of the program.
        options: what is protected, and which factors of a product may go.
        asked: by group name, the shares that are fixed by hand: they win over every wish to protect, but for
            those of patterns that name nothing, such as `*`. Of the factors of a product the policy chooses
            among those that were asked for.

    Raises:
        InputError: what is to be protected does not occur in the model.
    """
    reasons: dict[str, str] = {}
    tables = _tables(analysis) if options.protect_embeddings else set()
    full = analysis.price.macs.at({})
    names = Names(analysis)
    wishes = [_wish(item, names) for item in options.protect]
    for group in analysis.groups:
        share = asked.get(group.name)
        if share is not None and not share.anything:
            continue
        wished = next((reason for protects, reason in wishes if protects(group)), None)
        if wished is None and share is not None:
            continue
        if wished is not None:
            reasons[group.name] = wished
        elif group.axis in tables:
            reasons[group.name] = "the width of an embedding is protected"
        elif analysis.price.macs.at({group.axis: 1}) == full:
            reasons[group.name] = "it takes part in no multiply-accumulate"
    if options.factors != "both":
        for name, reason in _other_factors(analysis, reasons, asked, options.factors):
            reasons.setdefault(name, reason)
    return reasons


Wish = tuple[Callable[[Group], bool], str]


def _wish(item: Protection, names: Names) -> Wish:
    """Which groups one item of `protect` keeps, and the reason that the plan gives."""
    if isinstance(item, str):
        if any(group.goes_by(item) for group in names.groups):
            return lambda group: group.goes_by(item), "protected by name"
        matched = names.matching(item)
        return (_holding(matched), f"protected by pattern {item!r}") if matched else _typed(item, names)
    if isinstance(item, type):
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in _with_subclasses(item)}
        present = any(kind in kinds for kind in names.types.values())
        if not present:
            raise InputError(f"no module of the model is a {item.__qualname__}", hint=_known_types(names))
        return _holding(names.inside(kinds.__contains__)), f"protected by type {item.__qualname__}"
    title = getattr(item, "__qualname__", type(item).__qualname__)
    return _asking(item, title), f"protected by {title}"


def _asking(predicate: Callable[[Group], bool], title: str) -> Callable[[Group], bool]:
    """A predicate of the caller's whose failure says which one it was, and on which group."""

    def protects(group: Group) -> bool:
        try:
            return bool(predicate(group))
        except CompressError:
            raise
        except Exception as error:
            raise InputError(
                f"protect: {title} failed on the group {group.name!r}: {type(error).__name__}: "
                f"{first_line(error)}",
                hint="a predicate takes a group (with name, size and members) and returns True or False",
            ) from error

    return protects


def _typed(pattern: str, names: Names) -> Wish:
    """What a text protects that is no parameter's name: a type, with or without its package."""

    def is_type(kind: str) -> bool:
        return fnmatch.fnmatchcase(kind, pattern) or fnmatch.fnmatchcase(kind.rpartition(".")[2], pattern)

    if not any(is_type(kind) for kind in names.types.values()):
        example = f"parameters are named like {next(iter(names.aliases), '')!r}"
        raise InputError(
            f"the pattern {pattern!r} of what is protected matches none of the parameters and module types",
            hint=f"patterns are those of fnmatch; {example}; {_known_types(names)}",
        )
    return _holding(names.inside(is_type)), f"protected by type {pattern!r}"


def _known_types(names: Names) -> str:
    known = sorted({kind.rpartition(".")[2] for kind in names.types.values()})
    return f"module types are {', '.join(known[:8])}" if known else "the program knows no module types"


def _holding(tensors: frozenset[str]) -> Callable[[Group], bool]:
    return lambda group: any(member.tensor in tensors for member in group.members)


def _with_subclasses(kind: type[nn.Module]) -> Iterator[type[nn.Module]]:
    """A type and every loaded type that is derived from it: the program holds only the names of types."""
    yield kind
    for derived in kind.__subclasses__():
        yield from _with_subclasses(derived)


def _tables(analysis: Analysis) -> set[Axis]:
    """The axes that make up the width of what embedding operators index."""
    lookup = torch.ops.aten.embedding.default
    tables = [node.args[0] for node in analysis.program.graph.nodes if node.target is lookup]
    return {axis for table in tables for axis in leaves(analysis.space.of(table)[1])}


def _other_factors(
    analysis: Analysis, reasons: Mapping[str, str], asked: Mapping[str, Asked], policy: str
) -> Iterator[tuple[str, str]]:
    """Of the prunable factors of one product only one is pruned, so that nothing is removed twice.

    `reasons` is read anew for every product: what an earlier one protected is no factor of a later one.
    """
    for factors in rivals(analysis):
        left = [
            tuple(group for group in factor if group.name not in reasons and _may_go(asked.get(group.name)))
            for factor in factors
        ]
        open_factors = [factor for factor in left if factor]
        if len(open_factors) < 2:
            continue
        chosen = _chosen(open_factors, asked, policy)
        for factor in open_factors:
            if factor not in chosen:
                for group in factor:
                    yield (
                        group.name,
                        f"the other factor of its product, {chosen[0][0].name}, is pruned instead",
                    )


def _may_go(asked: Asked | None) -> bool:
    return asked is None or asked.share > 0


def _chosen(
    factors: list[tuple[Group, ...]], asked: Mapping[str, Asked], policy: str
) -> list[tuple[Group, ...]]:
    """The factors that may go, of factors given outermost first: all that the caller asked for by their own
    names, else one, of those that a pattern means where there are any.
    """
    means = [
        max((asked[group.name].means for group in factor if group.name in asked), default=None)
        for factor in factors
    ]
    best = max((found for found in means if found is not None), default=None)
    among = [factor for factor, found in zip(factors, means, strict=True) if found == best]
    if best is Means.NAMES:
        return among
    if policy == "outer":
        return among[:1]
    if policy == "inner":
        return among[-1:]
    return [max(among, key=lambda factor: sum(group.size for group in factor))]

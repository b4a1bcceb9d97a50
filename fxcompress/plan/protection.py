"""Which prunable groups stay whole: what the user protects, embeddings, the other factors of a product."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial

import torch
from torch import nn

from fxcompress.analysis.groups import Analysis, Group, rivals
from fxcompress.axes.expression import Axis, leaves
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.module import tied
from fxcompress.plan.prune import Protection, Prune


def protection(analysis: Analysis, options: Prune) -> dict[str, str]:
    """By group name, why a prunable group stays whole.

    Raises:
        InputError: what is to be protected does not occur in the model.
    """
    reasons: dict[str, str] = {}
    tables = _tables(analysis) if options.protect_embeddings else set()
    full = analysis.price.macs.at({})
    names = Names(analysis)
    wishes = [_wish(item, names) for item in options.protect]
    for group in analysis.groups:
        wished = next((reason for protects, reason in wishes if protects(group)), None)
        if wished is not None:
            reasons[group.name] = wished
        elif group.axis in tables:
            reasons[group.name] = "the width of an embedding is protected"
        elif analysis.price.macs.at({group.axis: 1}) == full:
            reasons[group.name] = "it takes part in no multiply-accumulate"
    if options.factors != "both":
        for name, reason in _other_factors(analysis, reasons, options.factors):
            reasons.setdefault(name, reason)
    return reasons


class Names:
    """What the user calls the stored tensors of a program, and the types of the modules that hold them."""

    def __init__(self, analysis: Analysis) -> None:
        self.program, self.groups = analysis.program, analysis.groups

    @cached_property
    def aliases(self) -> dict[str, frozenset[str]]:
        """By stored tensor, all its names, and that of the user's tensor which it is a part or copy of."""
        shared = {name: names for names in tied(self.program.module).values() for name in names}
        return {name: frozenset((*names, self.program.origins.user(name))) for name, names in shared.items()}

    @cached_property
    def types(self) -> dict[str, str]:
        """By module path, the module's type as `package.module.Name`."""
        return walk.module_types(self.program)

    def matching(self, pattern: str) -> frozenset[str]:
        """The stored tensors that have a name which the pattern matches."""
        return frozenset(
            name
            for name, names in self.aliases.items()
            if any(fnmatch.fnmatchcase(n, pattern) for n in names)
        )

    def inside(self, is_type: Callable[[str], bool]) -> frozenset[str]:
        """The stored tensors that a module of such a type holds, itself or in one of its children."""
        paths = [path for path, kind in self.types.items() if is_type(kind)]
        return frozenset(
            name
            for name, names in self.aliases.items()
            if any(not path or n.startswith(f"{path}.") for path in paths for n in names)
        )


def goes_by(group: Group, name: str) -> bool:
    """Whether this is the name of a group or of a stored dimension in it, such as `conv1.weight[0]`."""
    return name == group.name or any(name == str(member) for member in group.members)


Wish = tuple[Callable[[Group], bool], str]


def _wish(item: Protection, names: Names) -> Wish:
    """Which groups one item of `protect` keeps, and the reason that the plan gives."""
    if isinstance(item, str):
        if any(goes_by(group, item) for group in names.groups):
            return partial(goes_by, name=item), "protected by name"
        matched = names.matching(item)
        return (_holding(matched), f"protected by pattern {item!r}") if matched else _typed(item, names)
    if isinstance(item, type):
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in _with_subclasses(item)}
        present = any(kind in kinds for kind in names.types.values())
        if not present:
            raise InputError(f"no module of the model is a {item.__qualname__}", hint=_known_types(names))
        return _holding(names.inside(kinds.__contains__)), f"protected by type {item.__qualname__}"
    title = getattr(item, "__qualname__", type(item).__qualname__)
    return (lambda group: bool(item(group))), f"protected by {title}"


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


def _other_factors(analysis: Analysis, reasons: Mapping[str, str], policy: str) -> Iterator[tuple[str, str]]:
    """Of the prunable factors of one product only one is pruned, so that nothing is removed twice.

    `reasons` is read anew for every product: what an earlier one protected is no factor of a later one.
    """
    for factors in rivals(analysis):
        left = [tuple(group for group in factor if group.name not in reasons) for factor in factors]
        open_factors = [factor for factor in left if factor]
        if len(open_factors) < 2:
            continue
        chosen = _chosen(open_factors, policy)
        for factor in open_factors:
            if factor is not chosen:
                for group in factor:
                    yield group.name, f"the other factor of its product, {chosen[0].name}, is pruned instead"


def _chosen(factors: list[tuple[Group, ...]], policy: str) -> tuple[Group, ...]:
    """The factor that may go, of factors given outermost first."""
    if policy == "outer":
        return factors[0]
    if policy == "inner":
        return factors[-1]
    return max(factors, key=lambda factor: sum(group.size for group in factor))

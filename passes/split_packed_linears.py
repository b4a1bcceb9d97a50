"""Give each part of a packed linear a linear of its own, so that their widths are no longer tied.

    q, k, v = linear(x, W).reshape(.., 3, H, D).unbind(-3)
    =>  q = linear(x, W_0).reshape(.., 1, H, D).select(-3, 0), and so on

One reshape that says (3, heads, width) ties the value's width to the query's and key's, which attention does
not ask. Parts that are cut off with `chunk` or `split` have widths of their own already. So every site is
tried, and only those stay split whose parts turn out to have more free axes than the packed weight has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch.fx import Node
from torch.fx.node import Argument

from fxcompress.analysis.propagate import propagate
from fxcompress.axes.expression import Axis, leaves
from fxcompress.graph import edit, walk
from fxcompress.graph.origins import Origin
from fxcompress.graph.program import Program
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.passes.packed_sites import RESHAPES, NotPacked, Site, is_linear, operand, site_of

aten = torch.ops.aten

Packed: TypeAlias = dict[str, list[Site]]
"""By name of a packed weight, every linear that reads it."""


@dataclass(frozen=True)
class SplitPackedLinears:
    """linear(x, W) taken apart by a reshape => one linear per part, where that loosens a width."""

    name: ClassVar[str] = "split-packed-linears"

    def run(self, program: Program) -> Outcome:
        """Return a program in which loosely coupled parts have weights of their own, and their origins."""
        declined: list[Decline] = []
        packed = _packed(program, declined)
        if not packed:
            return Outcome(program, (), tuple(declined))
        result, origins = _split(program, packed)
        looser = _looser(program, packed, result, origins)
        for name in [name for name in packed if name not in looser]:
            declined += [_decline(site.call, "its parts have one width anyhow") for site in packed.pop(name)]
        if not packed:
            return Outcome(program, (), tuple(declined))
        if len(looser) < len({item.tensor for item in origins.values()}):
            result, origins = _split(program, packed)
        result.origins = result.origins.adding(self.name, origins)
        changed = [f"{name}: {len(sites[0].ranges)} parts" for name, sites in packed.items()]
        return Outcome(result, tuple(changed), tuple(declined))


def _decline(node: Node, reason: str) -> Decline:
    return Decline(node.name, reason, walk.source(node))


def _packed(program: Program, declined: list[Decline]) -> Packed:
    """The packed weights that can be split; what is taken apart otherwise goes to `declined`."""
    found: Packed = {}
    for call in filter(is_linear, program.graph.nodes):
        try:
            site = site_of(call)
            if site is not None:
                _check_readers(program, site)
                found.setdefault(str(site.weight.target), []).append(site)
        except NotPacked as reason:
            declined.append(_decline(call, str(reason)))
    for name, sites in list(found.items()):
        if len(sites) < len(sites[0].weight.users) or any(not _alike(site, sites[0]) for site in sites):
            declined += [
                _decline(site.call, "its weight is also read in another way") for site in found.pop(name)
            ]
    return found


def _check_readers(program: Program, site: Site) -> None:
    if site.digit.outer == site.digit.inner == 1:
        raise NotPacked("its parts have widths of their own already")
    for node in (site.weight, site.bias):
        if node is not None and node.op == "get_attr":
            if len(walk.aliases(program, str(node.target))) > 1:
                raise NotPacked(f"{node.target} has several names")
            if node is site.bias and any(user not in site.weight.users for user in node.users):
                raise NotPacked(f"{node.target} is the bias of another linear too")


def _alike(site: Site, other: Site) -> bool:
    return (site.digit, site.ranges, site.bias, site.form) == (
        other.digit,
        other.ranges,
        other.bias,
        other.form,
    )


def _looser(program: Program, packed: Packed, split: Program, origins: Mapping[str, Origin]) -> set[str]:
    """The weights whose parts have more free axes than they have packed."""
    after: dict[str, set[Axis]] = {}
    for name, axes in _free_axes(split):
        if name in origins:
            origin = origins[name]
            after.setdefault(origin.tensor, set()).update(axes[origin.dim or 0])
    before = {name: axes[packed[name][0].form.rows] for name, axes in _free_axes(program) if name in packed}
    return {name for name in packed if len(after[name]) > len(before[name])}


def _free_axes(program: Program) -> Iterator[tuple[str, list[set[Axis]]]]:
    """Each stored tensor with the free axes of each of its dimensions."""
    space = propagate(program)
    for node in walk.tensor_nodes(program):
        yield (
            str(node.target),
            [{axis for axis in leaves(dim) if not axis.frozen} for dim in space.of(node)],
        )


def _split(program: Program, packed: Packed) -> tuple[Program, dict[str, Origin]]:
    """A copy of the program in which the parts of these weights have linears of their own."""
    result = program.copy()
    nodes = {node.name: node for node in result.graph.nodes}
    origins: dict[str, Origin] = {}
    for sites in packed.values():
        own = [found for site in sites if (found := site_of(nodes[site.call.name])) is not None]
        weights = _parts(result, own[0], own[0].weight, own[0].form.rows, origins)
        bias = own[0].bias
        stored = bias is not None and bias.op == "get_attr"
        biases = _parts(result, own[0], bias, 0, origins) if bias is not None and stored else None
        for site in own:
            _rewrite(site, weights, biases)
    edit.tidy(result)
    return result, origins


def _parts(program: Program, site: Site, packed: Node, dim: int, origins: dict[str, Origin]) -> list[Node]:
    """One stored tensor per range of the digit, named after the packed one."""
    name, tensor = str(packed.target), walk.tensor(program, packed)
    made: list[Node] = []
    for count, bounds in enumerate(site.ranges):
        positions = site.digit.positions(*bounds)
        rows = tensor.detach().index_select(dim, torch.tensor(positions)).contiguous()
        trainable, last = isinstance(tensor, torch.nn.Parameter), made[-1] if made else packed
        node = edit.add_tensor(program, f"{name}_{count}", rows, trainable, last)
        walk.tensor(program, node).requires_grad_(tensor.requires_grad)
        origins[str(node.target)] = Origin(name, dim, positions)
        made.append(node)
    return made


def _rewrite(site: Site, weights: Sequence[Node], biases: Sequence[Node] | None) -> None:
    """Compute each part from its own weight, and let its readers read that."""
    for count, (start, stop) in enumerate(site.ranges):
        arguments = list(site.call.args)
        arguments[site.form.weight] = weights[count]
        if site.bias is not None:
            arguments[site.form.bias] = biases[count] if biases else _slice(site, start, stop)
        moved = {site.call: _call(site.call, site.call, arguments)}
        for node in site.chain:
            source = operand(node, 0)
            assert source is not None
            moved[node] = _call(node, node, [moved[source], *_resized(site, node, stop - start)])
        for item in site.taken:
            if (item.start, item.stop) == (start, stop):
                value = moved[item.source]
                if item.dropped:
                    value = _call(item.node, aten.select.int, [value, item.dim, 0])
                edit.replace_uses(item.node, value)


def _call(place: Node, like: Node | torch._ops.OpOverload, arguments: list[Argument]) -> Node:
    """A call before `place` with its metadata, named after it."""
    target = like.target if isinstance(like, Node) else like
    assert isinstance(target, torch._ops.OpOverload)
    node = edit.call_before(place, target, tuple(arguments), name=place.name)
    edit.annotate(node)
    return node


def _slice(site: Site, start: int, stop: int) -> Node:
    """The part of a bias that is computed."""
    step = site.digit.inner
    return _call(site.call, aten.slice.Tensor, [site.bias, 0, start * step, stop * step])


def _resized(site: Site, node: Node, length: int) -> list[Argument]:
    """The arguments behind the first, with the size of the part where a reshape says that of all."""
    rest = list(node.args[1:])
    if node.target not in RESHAPES:
        return rest
    sizes, skipped = list(rest[-1]), 0  # type: ignore[arg-type]
    if node.target is aten.unflatten.int:
        source = operand(node, 0)
        assert source is not None and isinstance(rest[0], int)
        skipped = rest[0] % walk.value(source).ndim
    for dim, digit in site.chain[node].items():
        if digit == site.digit:
            sizes[dim - skipped] = length
        elif digit.outer == digit.inner == 1:  # all rows are still one dimension
            sizes[dim] = site.digit.outer * length * site.digit.inner
    return [*rest[:-1], sizes]

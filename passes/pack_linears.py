"""Pack the parts of one packed linear again, once their widths are decided.

    q = linear(x, W_0); k = linear(x, W_1); v = linear(x, W_2)
    =>  q, k, v = linear(x, W).split_with_sizes([..], -1)

One product is faster than three small ones. The packed tensor has the user's name again wherever its rows
are in the user's order; where the parts' rows alternate it is called `W_packed`, and its origin says which
row is which.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from torch.fx import Node

from fxcompress.graph import edit, walk
from fxcompress.graph.origins import Origin
from fxcompress.graph.program import Program
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.passes.packed_sites import FORMS, is_linear, operand

aten = torch.ops.aten

Call: TypeAlias = tuple[Node, ...]
"""The linears that were one: each reads the same input, in the order of their parts."""


@dataclass(frozen=True)
class PackLinears:
    """Linears of one input that are parts of one packed weight => one linear and a split."""

    name: ClassVar[str] = "pack-linears"

    def run(self, program: Program) -> Outcome:
        """Return a program in which what was one linear is one again."""
        result = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for user, parts in _parted(result).items():
            calls = _calls(parts)
            if calls is None:
                reason = f"the parts of {user} are not read by the same linears"
                declined.append(Decline(user, reason))
                continue
            _pack(result, calls)
            changed.append(f"{user}: {len(parts)} parts")
        if not changed:
            return Outcome(program, (), tuple(declined))
        edit.tidy(result)
        kept = [str(node.target) for node in walk.tensor_nodes(result)]
        result.origins = result.origins.only(kept)
        return Outcome(result, tuple(changed), tuple(declined))


def _parted(program: Program) -> dict[str, list[Node]]:
    """By the user's name of a packed weight, the nodes of its parts, in the order of their positions."""
    found: dict[str, list[Node]] = defaultdict(list)
    weights = {operand(node, FORMS[node.target].weight) for node in program.graph.nodes if is_linear(node)}
    for node in walk.tensor_nodes(program):
        origin = program.origins.tensors.get(str(node.target))
        if node in weights and origin is not None and origin.dim is not None:
            found[origin.tensor].append(node)
    ordered = {
        user: sorted(nodes, key=lambda node: program.origins.tensors[str(node.target)].positions[0])
        for user, nodes in found.items()
    }
    return {user: nodes for user, nodes in ordered.items() if len(nodes) > 1}


def _calls(parts: Sequence[Node]) -> list[Call] | None:
    """The groups of linears that read one input with every part; None where some reader stands alone."""
    groups: dict[object, dict[Node, Node]] = defaultdict(dict)
    for part in parts:
        for call in walk.consumers(part):
            if not is_linear(call) or operand(call, FORMS[call.target].weight) is not part:
                return None
            form = FORMS[call.target]
            rest = tuple(
                str(item) for place, item in enumerate(call.args) if place not in (form.weight, form.bias)
            )
            biased = operand(call, form.bias) is not None
            groups[call.target, operand(call, form.x), biased, rest][part] = call
    if any(len(calls) != len(parts) or not _in_order(calls) for calls in groups.values()):
        return None
    if sum(map(len, groups.values())) != sum(len(part.users) for part in parts):
        return None
    return [tuple(calls[part] for part in parts) for calls in groups.values()]


def _in_order(calls: Mapping[Node, Node]) -> bool:
    """Whether nothing reads one of these linears before the last of them."""
    last = max(calls.values())
    return all(last < user for call in calls.values() for user in call.users)


def _pack(program: Program, groups: Sequence[Call]) -> None:
    """Store the packed tensors once, and let each group of linears be one."""
    form = FORMS[groups[0][0].target]
    weight = _packed(program, [_operand(call, form.weight) for call in groups[0]])
    biases: dict[Call, Node] = {}
    for calls in groups:
        last = max(calls)
        arguments = list(last.args)
        arguments[form.weight] = weight
        if operand(last, form.bias) is not None:
            found = tuple(_operand(call, form.bias) for call in calls)
            if found not in biases or not _parts(program, found):
                biases[found] = _bias(program, last, found)
            arguments[form.bias] = biases[found]
        whole = _call(last, last.target, tuple(arguments), last.name)
        channel = form.channel % walk.value(last).ndim
        sizes = [walk.hint(walk.value(call).shape[channel]) for call in calls]
        pieces = _call(last, aten.split_with_sizes.default, (whole, sizes, channel), "split_with_sizes")
        for place, call in enumerate(calls):
            piece = _call(last, operator.getitem, (pieces, place), call.name)
            edit.replace_uses(call, piece)


def _parts(program: Program, nodes: Call) -> bool:
    """Whether these are the stored parts of one tensor."""
    origins = [program.origins.tensors.get(str(node.target)) for node in nodes]
    return all(item is not None and item.dim is not None for item in origins)


def _bias(program: Program, last: Node, found: Call) -> Node:
    """The biases of a group as one: stored where they are parts, joined where they are computed."""
    if _parts(program, found):
        return _packed(program, found)
    return _call(last, aten.cat.default, (list(found), 0), "bias")


def _operand(call: Node, place: int) -> Node:
    found = operand(call, place)
    assert found is not None
    return found


def _call(place: Node, target: object, arguments: tuple[object, ...], name: str) -> Node:
    """A call before `place`, with its metadata."""
    assert callable(target)
    node = edit.call_before(place, target, arguments, name=name)
    edit.annotate(node)
    return node


def _packed(program: Program, parts: Sequence[Node]) -> Node:
    """One stored tensor of all parts, under the user's name where its rows are in the user's order."""
    names = [str(part.target) for part in parts]
    origins = [program.origins.tensors[name] for name in names]
    tensors = [walk.tensor(program, name) for name in names]
    user, dim = origins[0].tensor, origins[0].dim
    assert dim is not None
    positions = tuple(place for origin in origins for place in origin.positions)
    ordered = positions == tuple(range(len(positions)))
    trainable = isinstance(tensors[0], torch.nn.Parameter)
    name = user if ordered else f"{user}_packed"
    whole = torch.cat([tensor.detach() for tensor in tensors], dim)
    node = edit.add_tensor(program, name, whole, trainable, parts[0])
    walk.tensor(program, node).requires_grad_(tensors[0].requires_grad)
    if not ordered:
        made = {**program.origins.tensors, str(node.target): Origin(user, dim, positions)}
        program.origins = replace(program.origins, tensors=made)
    return node

"""The operators a stored graph may call, by name: an allow-list, as a name in a file must never become code.

ATen and `quantized_decomposed` overloads are looked up in torch's operator registry after their names have
been checked; arithmetic on symbolic sizes is a short explicit table. Anything else is refused.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

from fxcompress.errors import UnsafeFile

NAMESPACES = ("aten", "quantized_decomposed")

_OVERLOAD = re.compile(r"(?P<space>[a-z_]+)\.(?P<name>[A-Za-z_][A-Za-z0-9_]*)\.(?P<overload>[A-Za-z0-9_]+)")

_DUNDERS = frozenset(
    f"__{prefix}{name}__" for name in ("and", "or", "xor", "lshift", "rshift") for prefix in ("", "i")
)

# Overloads that read or write files, touch the process, or run autograd: never part of a model's computation.
_DENIED = frozenset(
    [
        "from_file",
        "save",
        "_print",
        "warn",
        "wait",
        "to_here",
        "owner",
        "owner_name",
        "confirmed_by_owner",
        "local_value",
        "backward",
        "_backward",
        "manual_seed",
        "initial_seed",
        "seed",
        "set_grad_enabled",
        "set_data",
        "retain_grad",
        "record_stream",
        "_propagate_xla_data",
    ]
)

_OPERATOR = [
    "getitem",
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "pos",
    "abs",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "and_",
    "or_",
    "xor",
    "not_",
    "invert",
    "lshift",
    "rshift",
    "index",
]
_MATH = ["ceil", "floor", "trunc", "sqrt", "log", "log2", "exp", "pow"]
_TORCH = [
    "sym_int",
    "sym_float",
    "sym_max",
    "sym_min",
    "sym_not",
    "sym_sum",
    "sym_ite",
    "_sym_sqrt",
    "_sym_log2",
]

PLAIN: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATOR},
    **{f"math.{name}": getattr(math, name) for name in _MATH},
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH if hasattr(torch, name)},
}
"""The Python functions a graph may call on symbolic sizes and on tuples, by their stored name."""

_PLAIN_NAMES = {function: name for name, function in reversed(PLAIN.items())}


def name_of(target: object) -> str | None:
    """The stored name of a call target, `None` for one that is not on the list."""
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        return name if _lookup(name) is target else None
    return _PLAIN_NAMES.get(target) if callable(target) else None


def resolve(name: str) -> Callable[..., Any]:
    """The call target stored as `name`, as `aten.relu.default`; UnsafeFile for a name not on the list."""
    target = PLAIN.get(name) or _lookup(name)
    if target is None:
        raise UnsafeFile(
            f"the graph calls {name[:80]!r}, which is not an operator of a stored program",
            hint=f"allowed are overloads of {' and '.join(NAMESPACES)} and arithmetic on sizes",
        )
    return target


def _lookup(name: str) -> Callable[..., Any] | None:
    match = _OVERLOAD.fullmatch(name)
    if match is None or match["space"] not in NAMESPACES or match["name"] in _DENIED:
        return None
    if match["name"].startswith("__") and match["name"] not in _DUNDERS:
        return None
    packet = getattr(getattr(torch.ops, match["space"]), match["name"], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or match["overload"] not in packet.overloads():
        return None
    target = getattr(packet, match["overload"])
    return target if isinstance(target, torch._ops.OpOverload) else None

"""Fake quantization in a captured program, written as what integer kernels are made of.

    fake_quantize(x, s, z, low, high)        =>  dequantize(clamp(quantize(x, s, z)))       uint8
    fake_quantize(weight), quantize(weight)  =>  dequantize(weight_int8)                    stored

Scales are kept. int8 activations are shifted to uint8, which stands for the same numbers and is what the fast
kernels want beside int8 weights. `QuantizeLinear` knows the whole range of its type only, so a shorter one
(0..127 is the default for x86) becomes a clamp of the integers; without it values beyond the range would come
back larger than in training (pytorch#143497).

Rectifiers behind a quantizer are taken into its integers (`graph/rectifiers.py`).

Scales that are found at run time stay so, in the one range that runtimes find them for. What has more than 8
bits, scales that are computed otherwise, and zero points of channels other than 0 are left as they are. Zero
points that are no integers (embeddings) have no form in integers at all: see `graph.float_zeros`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.float_zeros import settle_float_zeros
from fxcompress.graph.rectifiers import clamp_bounds, is_rectified, quantizer_of, take_in_rectifiers
from fxcompress.graph.signature import Holder

aten = torch.ops.aten
integers = torch.ops.quantized_decomposed

QUANTIZE, DEQUANTIZE = integers.quantize_per_tensor.default, integers.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = integers.dequantize_per_channel.default

_FAKE = (
    aten.fake_quantize_per_tensor_affine.default,
    aten.fake_quantize_per_tensor_affine.tensor_qparams,
    aten._fake_quantize_learnable_per_tensor_affine.default,
)
_FAKE_CHANNELS = (
    aten.fake_quantize_per_channel_affine.default,
    integers.fake_quant_per_channel.default,
    aten._fake_quantize_learnable_per_channel_affine.default,
)
_QUANTIZERS = (QUANTIZE, integers.quantize_per_tensor.tensor)
DEQUANTIZE_AT_RUN_TIME = integers.dequantize_per_tensor.tensor
_DEQUANTIZERS = (DEQUANTIZE, DEQUANTIZE_AT_RUN_TIME)
_RANGE = integers.choose_qparams.tensor
_PARTS = (*_FAKE, *_FAKE_CHANNELS, *_QUANTIZERS, integers.quantize_per_channel.default)


class _Form(NamedTuple):
    """Scale, zero point and range of one quantization."""

    scale: float
    zero: int
    low: int
    high: int

    def moved(self, low: int) -> _Form:
        """The same numbers in integers from 0 (uint8) or -128 (int8) on."""
        shift = low - (-128 if self.low < 0 else 0)
        return _Form(self.scale, self.zero + shift, self.low + shift, self.high + shift)


def settle_quantizers(program: Holder) -> list[str]:
    """Write the fake quantization of a program as integers; returns notes on what there was."""
    notes = settle_float_zeros(program)
    parts = [node for node in program.module.graph.nodes if node.target in _PARTS]
    if not parts:
        return notes
    _refuse_half(parts)
    left = dynamic = 0
    for node in parts:
        if _is_dynamic(node):
            dynamic += 1
            continue
        if node.target in _FAKE:
            done = _settle_fake(program, node)
        elif node.target in _QUANTIZERS:
            done = _settle_pair(program, node)
        else:
            done = _settle_channels(program, node)
        left += not done
    _cancel(program)
    take_in_rectifiers(program)
    edit.tidy(program)
    edit.reinfer(program)
    note = f"the model carries fake quantization at {len(parts)} places; its scales are kept"
    found = f", {dynamic} of them as found at run time" if dynamic else ""
    return [*notes, note + found + (f", {left} of them as they were written" if left else "")]


def _refuse_half(parts: list[fx.Node]) -> None:
    """Raise InputError for fake quantization of other floats than those that scales are for."""
    for node in parts:
        if node.target in (*_FAKE, *_FAKE_CHANNELS) and walk.dtype(_input(node)) != torch.float32:
            raise InputError(
                f"{walk.dtype(_input(node))} is fake-quantized, and integers are made of float32 only",
                hint="pass model.float() and inputs in float32",
                node=node.format_node(),
                source=walk.source(node),
            )


def _is_dynamic(node: fx.Node) -> bool:
    """Whether a quantization finds its scale at run time; raises InputError where no runtime does."""
    found = _origin(node.args[1]) if node.target in _QUANTIZERS else None
    if found is None:
        return False
    low, high = found.args[1:3]
    if (low, high) != node.args[3:5] or (low, high) not in ((0, 255), (-128, 127)):
        raise InputError(
            f"a scale is found at run time for the integers {low}..{high}, and runtimes find one for all of "
            "0..255 only",
            hint="quantize with the full range of eight bits (reduce_range=False), or pass the float model "
            'with quantize="int8-dynamic"',
            node=node.format_node(),
            source=walk.source(node),
        )
    return True


def _origin(scale: Any) -> fx.Node | None:
    """What finds a scale at run time; None for any other."""
    origin = scale.args[0] if isinstance(scale, fx.Node) and scale.args else None
    return origin if isinstance(origin, fx.Node) and origin.target is _RANGE else None


def is_quantized(program: Holder) -> bool:
    """Whether a program dequantizes something."""
    return any(node.target in (*_DEQUANTIZERS, DEQUANTIZE_CHANNELS) for node in program.module.graph.nodes)


def drop_quantizers(program: Holder) -> None:
    """Let every activation be what it was before it was quantized, in place; weights stay as they are."""
    for node in list(program.module.graph.nodes):
        before = quantizer_of(node) if node.target in _DEQUANTIZERS else None
        if before is None:
            continue
        plain = _input(before)
        if is_rectified(node):
            plain = edit.call_before(node, aten.relu.default, (plain,), name=f"{node.name}_rectified")
        edit.replace_uses(node, plain)
    edit.tidy(program)
    edit.reinfer(program)


def dequantize_stored(program: Holder) -> None:
    """Store what the integers of weights stand for, in place of them."""
    for node in list(program.module.graph.nodes):
        stored = [_tensor(program, source) for source in node.all_input_nodes]
        if node.target not in (DEQUANTIZE, DEQUANTIZE_CHANNELS) or any(item is None for item in stored):
            continue
        args = fx.node.map_arg(node.args, lambda source: walk.tensor(program, source))
        real = node.target(*args)
        edit.replace_uses(node, edit.add_tensor(program, f"{_input(node).target}_real", real, trainable=True))
    edit.tidy(program)
    edit.reinfer(program)


def sign_activations(program: Holder) -> None:
    """Write uint8 activations as int8: the same numbers, with zero points 128 lower."""
    for node in list(program.module.graph.nodes):
        if node.target is not QUANTIZE or node.args[5] is not torch.uint8:
            continue
        clamps = [reader for reader in node.users if reader.target is aten.clamp.default]
        ends = [reader for part in (*clamps, node) for reader in part.users if reader not in clamps]
        bounded = all(clamp_bounds(clamp) is not None for clamp in clamps)
        if not bounded or any(reader.target is not DEQUANTIZE for reader in ends):
            continue
        for part in (node, *ends):
            source, scale, zero = part.args[:3]
            edit.set_call(part, part.target, (source, scale, zero - 128, -128, 127, torch.int8))
        for part in clamps:
            edit.set_call(part, part.target, (part.args[0], part.args[1] - 128, part.args[2] - 128))
    edit.reinfer(program)


def _settle_fake(program: Holder, node: fx.Node) -> bool:
    form = _form(program, node.args[1:3], node.args[3:5])
    if form is None:
        return False
    source = _input(node)
    real = _stored(program, source, form) or _quantized(node, source, form)
    edit.replace_uses(node, real)
    return True


def _settle_pair(program: Holder, node: fx.Node) -> bool:
    """A quantization and the dequantizations behind it."""
    form = _form(program, node.args[1:3], node.args[3:5])
    if form is None or any(user.target not in _DEQUANTIZERS for user in node.users):
        return False
    for real in list(node.users):
        other = _form(program, real.args[1:3], real.args[3:5])
        if other is None or (other.scale, other.zero) != (form.scale, form.zero):
            return False
    source = _input(node)
    plain = node.target is QUANTIZE and all(real.target is DEQUANTIZE for real in node.users)
    if plain and form[2:] == (0, 255) and source.op != "get_attr":
        return True
    new = _stored(program, source, form) or _quantized(node, source, form)
    for real in list(node.users):
        edit.replace_uses(real, new)
    return True


def _settle_channels(program: Holder, node: fx.Node) -> bool:
    """Per channel: a stored weight becomes int8."""
    args: tuple[Any, ...] = node.args
    _, scales, zeros, axis, low, high = args[:6]
    given = [_tensor(program, item) for item in (node.args[0], scales, zeros)]
    pairs = node.target is integers.quantize_per_channel.default
    readers = list(node.users) if pairs else [node]
    if any(item is None for item in given) or not (
        fits_a_byte(low, high) and isinstance(low, int) and low < 0
    ):
        return False
    if pairs and any(reader.target is not DEQUANTIZE_CHANNELS for reader in readers):
        return False
    weight, scale, zero = (item for item in given if item is not None)
    if bool(zero.round().any()):  # those of learnable operators are floats
        return False
    shape = [-1 if dim == axis % weight.dim() else 1 for dim in range(weight.dim())]
    whole = torch.round(weight * (1.0 / scale.float()).reshape(shape)).clamp(low, high).to(torch.int8)
    name = str(_input(node).target)
    stored = _integers(program, name, whole)
    steps = edit.add_tensor(program, f"{name}_scale", scale.float().clone())
    nothing = edit.add_tensor(program, f"{name}_zero_point", torch.zeros(len(scale), dtype=torch.int64))
    form = (stored, steps, nothing, axis, -128, 127, torch.int8)
    for reader in readers:
        real = edit.call_before(reader, DEQUANTIZE_CHANNELS, form, name=f"{stored.name}_dq")
        edit.replace_uses(reader, real)
    return True


def _stored(program: Holder, source: fx.Node, form: _Form) -> fx.Node | None:
    """A stored weight as int8 with one scale; None for a computed tensor."""
    weight = _tensor(program, source)
    if weight is None:
        return None
    form = form.moved(-128)
    whole = torch.clamp(torch.round(weight * (1.0 / form.scale)) + form.zero, form.low, form.high)
    stored = _integers(program, str(source.target), whole.to(torch.int8))
    args = (stored, form.scale, form.zero, -128, 127, torch.int8)
    return edit.call_before(min(source.users), DEQUANTIZE, args, name=f"{stored.name}_dq")


def _integers(program: Holder, name: str, whole: torch.Tensor) -> fx.Node:
    """Store the integers of a weight, once where several quantizations of it give the same."""
    for node in walk.tensor_nodes(program):
        if str(node.target).startswith(f"{name}_int8") and torch.equal(walk.tensor(program, node), whole):
            return node
    return edit.add_tensor(program, f"{name}_int8", whole)


def _quantized(node: fx.Node, source: fx.Node, form: _Form) -> fx.Node:
    """Dequantize(clamp(quantize(source))) before `node`, whose name its integers take."""
    form = form.moved(0)
    args = (form.scale, form.zero, 0, 255, torch.uint8)
    whole = edit.call_before(node, QUANTIZE, (source, *args), name=f"{source.name}_q")
    if (form.low, form.high) != (0, 255):
        bounds = (whole, form.low, form.high)
        whole = edit.call_before(node, aten.clamp.default, bounds, name=f"{source.name}_clamped")
    return edit.call_before(node, DEQUANTIZE, (whole, *args), name=f"{source.name}_dq")


def _cancel(program: Holder) -> None:
    """Quantize(dequantize(q)) in one scale => q, through a clamp to the same range."""
    for node in list(program.module.graph.nodes):
        if node.target is not QUANTIZE:
            continue
        before = _input(node)
        if before.target is DEQUANTIZE and before.args[1:6] == node.args[1:6]:
            edit.replace_uses(node, _input(before))
    for node in list(program.module.graph.nodes):
        if node.target is aten.clamp.default and isinstance(node.args[0], fx.Node):
            before = _input(node)
            if before.target is aten.clamp.default and before.args[1:] == node.args[1:]:
                edit.replace_uses(node, before)


def _form(program: Holder, qparams: Any, bounds: Any) -> _Form | None:
    """The numbers of a quantization; None where they are computed or of more than 8 bits."""
    scale, zero = (_number(program, item) for item in qparams)
    low, high = bounds
    if scale is None or zero is None or not fits_a_byte(low, high):
        return None
    if not isinstance(zero, int):  # those of learnable operators are floats
        zero = min(max(round(zero), low), high)
    return _Form(float(scale), zero, low, high)


def fits_a_byte(low: Any, high: Any) -> bool:
    """Whether these are the ends of a range of int8 or of uint8."""
    if not (isinstance(low, int) and isinstance(high, int)):
        return False
    return -128 <= low < high <= 127 or 0 <= low < high <= 255


def _number(program: Holder, value: Any) -> float | None:
    if isinstance(value, fx.Node):
        stored = _tensor(program, value)
        return float(stored) if stored is not None and stored.numel() == 1 else None
    return value if isinstance(value, int | float) else None


def _tensor(program: Holder, node: Any) -> Tensor | None:
    """The tensor that a node reads from the program, None for a computed one."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return walk.tensor(program, node).detach()


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source

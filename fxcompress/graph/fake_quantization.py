"""Models prepared by `torch.ao.quantization`: their fake quantization frozen, so that it can be captured.

    FakeQuantize              =>  fake_quantize(x, scale, zero_point) with the numbers it has now
    one that is dynamic       =>  the same with a scale found at run time, as in `passes.quantize_dynamically`
    an observer               =>  nothing: it only looks
    convolution + batch norm  =>  one convolution whose weight is that which was fake-quantized
    quint8 tensors of `convert_to_reference_fx`  =>  the same in operators on plain integers

All on a copy. Models of `convert_fx` and `convert`, whose layers run on packed weights, are refused: their
float weights are gone, and `torch.export` knows nothing of them (pytorch#143474).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.intrinsic.qat.modules.conv_fused import _ConvBnNd
from torch.ao.nn.intrinsic.qat.modules.linear_fused import LinearBn1d
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

from fxcompress.errors import InputError
from fxcompress.graph.fixed_quantizers import BYTE, AtRunTime, FloatZeros, PerChannel, PerTensor
from fxcompress.graph.quantizers import fits_a_byte
from fxcompress.graph.quint8 import PLAIN, QUINT8, use_plain_integers

_PREPARED = (FakeQuantizeBase, ObserverBase, _LearnableFakeQuantize)
_PACKED = (
    "torch.ao.nn.quantized.modules",
    "torch.ao.nn.quantized.dynamic",
    "torch.ao.nn.intrinsic.quantized",
)
_FLOAT = (torch.ao.nn.quantized.FloatFunctional, torch.ao.nn.quantized.FXFloatFunctional)
"""What lives beside the packed layers and computes in float: additions with a quantizer behind them."""

_BEFORE_PACKING = (
    "pass what convert_to_reference_fx makes of the model of prepare_fx or prepare_qat_fx; after "
    "quantization-aware training, the prepared model as it was before convert() does as well"
)
_FLOAT_MODEL = 'pass the float model with quantize="int8-dynamic"'
LISTED = 3

_NIBBLES = (0, 15)
_FLOAT_ZEROS = torch.per_channel_affine_float_qparams


def frozen(model: nn.Module) -> nn.Module:
    """The model itself, or a copy whose fake quantization is fixed at its scales.

    Raises:
        InputError: a scale that no data has set, layers with packed integer weights, or a model of
            `prepare_pt2e`.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_PACKED) and not isinstance(module, _FLOAT):
            dynamic = ".dynamic." in type(module).__module__
            raise InputError(
                f"{name} is a {type(module).__name__} with packed integer weights, which cannot be captured",
                hint=_FLOAT_MODEL if dynamic else _BEFORE_PACKING,
            )
        if type(module).__module__.startswith("torchao.") and hasattr(module, "calculate_qparams"):
            raise InputError(
                f"{name} is a {type(module).__name__} of pt2e: the model is prepared, not yet converted",
                hint="pass what convert_pt2e(model) returns",
            )
    if not any(_is_affected(module) for module in model.modules()):
        return model
    result = copy.deepcopy(model)
    if isinstance(result, _PREPARED):
        raise InputError("this is a quantizer, not a model", hint="pass the model that it is in")
    _replace_all(result, _without_norm)
    _replace_all(result, _fixed)
    for module in result.modules():
        if isinstance(module, fx.GraphModule):
            use_plain_integers(module)
    return result


def notes_on_observers(model: nn.Module) -> list[str]:
    """What to say of observers that have seen data: their ranges are in no graph."""
    inside = {item for module in model.modules() if _fakes(module) for item in module.modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ObserverBase) and module not in inside and _has_seen(module)
    ]
    if not names:
        return []
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    return [
        f"the observers' ranges are left out, and their tensors stay in float: {listed}; "
        "convert_to_reference_fx keeps them, for a model of prepare_fx"
    ]


def _fakes(module: nn.Module) -> bool:
    return isinstance(module, FakeQuantizeBase | _LearnableFakeQuantize)


def _has_seen(observer: Any) -> bool:
    """Whether an observer knows a range."""
    seen = getattr(observer, "min_val", None)
    return isinstance(seen, Tensor) and bool(seen.numel()) and not bool(torch.isinf(seen).any())


def _is_affected(module: nn.Module) -> bool:
    """Whether a module is no plain float one, or quantizes in its graph."""
    if isinstance(module, fx.GraphModule):
        return any(node.target in QUINT8 for node in module.graph.nodes)
    return isinstance(module, _PREPARED) or _is_reference(module)


def _is_reference(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.ao.nn.quantized.reference")


def _replace_all(model: nn.Module, form: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Put what `form` makes of a module in its place, wherever it is; None leaves it."""
    made: dict[nn.Module, nn.Module | None] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module not in made:
            made[module] = form(name, module)
        new = made[module]
        owner, _, last = name.rpartition(".")
        if new is None or not name:
            continue
        try:
            parent = model.get_submodule(owner)
        except AttributeError:
            continue  # it went with the module that held it
        new.train(module.training)
        setattr(parent, last, new)


def _without_norm(_: str, module: nn.Module) -> nn.Module | None:
    return _Fused(module) if isinstance(module, _ConvBnNd | LinearBn1d) else None


def _fixed(name: str, module: nn.Module) -> nn.Module | None:
    if _fakes(module):
        return _quantizer(name, module)
    if isinstance(module, ObserverBase):
        return nn.Identity()
    if _is_reference(module):
        reference: Any = module
        if getattr(reference, "weight_qscheme", None) == _FLOAT_ZEROS and not reference.is_decomposed:
            reference.get_weight = partial(_rounded_table, reference)
        reference.is_decomposed = True
    return None


def _rounded_table(reference: Any) -> Tensor:
    """The weight that a reference module with float zero points computes: decomposed ones cut, not round."""
    form = PLAIN.get(reference.weight_dtype, _NIBBLES)
    given = (reference.weight_scale.float(), reference.weight_zero_point.float())
    return torch.fake_quantize_per_channel_affine(
        reference.weight, *given, reference.weight_axis_int, *form[:2]
    )


def _quantizer(name: str, module: Any) -> nn.Module:
    """The module with its numbers fixed."""
    if not int(module.fake_quant_enabled[0]):
        return nn.Identity()
    if getattr(module, "is_dynamic", False) and int(module.observer_enabled[0]):
        return _at_run_time(name, module)
    scale, zero = _learned(module) if _learns(module) else _observed(name, module)
    low, high = int(module.quant_min), int(module.quant_max)
    if not fits_a_byte(low, high):
        raise InputError(
            f"the fake quantization {name} has the integers {low}..{high}, which are not of eight bits",
            hint="prepare the model with -128..127 or 0..255, or disable_fake_quant() of this one",
        )
    if module.qscheme == _FLOAT_ZEROS:
        origins = module.zero_point.detach().float().clone()
        return FloatZeros(scale, origins, int(module.ch_axis), (low, high))
    if getattr(module, "is_per_channel", False) or scale.numel() > 1:
        return PerChannel(scale, zero, int(module.ch_axis), (low, high))
    return PerTensor(float(scale), int(zero), (low, high))


def _learns(module: nn.Module) -> bool:
    """Whether a module's own scale counts, and none of its observer."""
    return isinstance(module, _LearnableFakeQuantize) and not int(module.static_enabled[0])  # type: ignore[index]


def _learned(module: Any) -> tuple[Tensor, Tensor]:
    """Scale and zero point as the operators of learnable fake quantization read them."""
    low, high = int(module.quant_min), int(module.quant_max)
    scale = module.scale.detach().float().clamp(min=float(module.eps))
    zero = module.zero_point.detach().float()
    if module.qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric):
        zero = torch.zeros_like(zero)
    return scale, zero.round().clamp(low, high).to(torch.int32)


def _observed(name: str, module: Any) -> tuple[Tensor, Tensor]:
    """Scale and zero point that data has set."""
    scale = module.scale.detach().float().clone()
    zero = module.zero_point.detach().round().to(torch.int32).clone()
    observer = getattr(module, "activation_post_process", None)
    unseen = isinstance(getattr(observer, "min_val", None), Tensor) and not _has_seen(observer)
    if unseen or not bool(scale.isfinite().all()) or bool((scale <= 0).any()):
        raise InputError(
            f"the fake quantization {name} has no scale yet: no data went through it",
            hint="train or calibrate the prepared model first",
        )
    return scale, zero


def _at_run_time(name: str, module: Any) -> nn.Module:
    """The module that finds its scale in every call; the range must be what a runtime's operator uses."""
    low, high = int(module.quant_min), int(module.quant_max)
    if module.qscheme != torch.per_tensor_affine:
        raise _no_dynamic_form(name, str(module.qscheme).removeprefix("torch."))
    if high - low != BYTE:
        raise _no_dynamic_form(name, f"{low}..{high}")
    return AtRunTime(float(module.activation_post_process.eps))


def _no_dynamic_form(name: str, what: str) -> InputError:
    return InputError(
        f"{name} finds its scale at run time ({what}), which runtimes do in eight bits, with one scale and a "
        "zero point for the whole tensor only",
        hint="prepare the model with default_dynamic_fake_quant (0..255, per_tensor_affine), or pass the "
        'float model with quantize="int8-dynamic"',
    )


class _Fused(nn.Module):
    """A convolution (or linear) with the batch norm behind it, as its quantized form will be.

    Training quantizes `weight * gamma / std` and divides by the factor again before the batch norm; in
    evaluation the two cancel.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        norm = module.bn
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
        bias = module.bias if module.bias is not None else torch.zeros_like(norm.running_mean)
        shape = [-1] + [1] * (module.weight.dim() - 1)
        self.weight = nn.Parameter(module.weight.detach() * factor.reshape(shape))
        self.bias = nn.Parameter((bias.detach() - norm.running_mean) * factor + norm.bias.detach())
        self.weight_fake_quant = module.weight_fake_quant
        self.activation_post_process = getattr(module, "activation_post_process", None)
        self.rectified = "ReLU" in type(module).__name__
        self.layer = _Convolution(module) if isinstance(module, _ConvBnNd) else _linear

    def forward(self, x: Tensor) -> Tensor:
        """One product, and the rectifier where the layer has one."""
        y = self.layer(x, self.weight_fake_quant(self.weight), self.bias)
        y = torch.relu(y) if self.rectified else y
        return y if self.activation_post_process is None else self.activation_post_process(y)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.linear(x, weight, bias)


class _Convolution:
    """The convolution of a fused layer, without its tensors."""

    def __init__(self, module: Any) -> None:
        if module.padding_mode != "zeros":
            raise InputError(
                f"a fused convolution pads with {module.padding_mode}", hint="pad before the convolution"
            )
        functions = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
        self.function = functions[module.weight.dim() - 3]
        self.given = (module.stride, module.padding, module.dilation, module.groups)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.function(x, weight, bias, *self.given)

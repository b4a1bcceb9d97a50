"""Programs with their ONNX files, and ways to break such a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import torch
import torch.ao.quantization.fx._decomposed
from numpy.typing import NDArray
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower

quantized = torch.ops.quantized_decomposed


class Plain(nn.Module):
    """Two convolutions with a residual, a pool, and a linear with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        logits = self.head(x.mean((2, 3)))
        return {"logits": logits, "best": logits.argmax(1)}


class Quantized(nn.Module):
    """`Plain` with Q/DQ: int8 weights per channel, int32 biases, uint8 activations, ranges from one batch."""

    def __init__(self, plain: Plain, x: Tensor) -> None:
        super().__init__()
        first = torch.relu(plain.first(x))
        total = torch.relu(plain.second(first) + first)
        self.scales = {"x": x.abs().max() / 127, "first": first.max() / 255}
        self.scales["second"] = plain.second(first).abs().max() / 127
        self.scales["total"] = total.max() / 255
        self.scales = {name: float(scale) for name, scale in self.scales.items()}
        for name, module, source in (
            ("first", plain.first, "x"), ("second", plain.second, "first"), ("head", plain.head, "total")
        ):  # fmt: skip
            weight = module.weight.detach()
            scale = weight.flatten(1).abs().amax(1) / 127
            shaped = scale.reshape(-1, *[1] * (weight.dim() - 1))
            self.register_buffer(f"{name}_weight", (weight / shaped).round().clamp(-127, 127).to(torch.int8))
            self.register_buffer(f"{name}_scale", scale)
            bias_scale = scale * self.scales[source]
            self.register_buffer(f"{name}_bias", (module.bias.detach() / bias_scale).round().to(torch.int32))
            self.register_buffer(f"{name}_bias_scale", bias_scale)
            self.register_buffer(f"{name}_zero", torch.zeros(len(scale), dtype=torch.int64))

    def parameters_of(self, name: str) -> tuple[Tensor, Tensor]:
        zero = getattr(self, f"{name}_zero")
        weight = quantized.dequantize_per_channel(
            getattr(self, f"{name}_weight"), getattr(self, f"{name}_scale"), zero, 0, -127, 127, torch.int8
        )
        bias = quantized.dequantize_per_channel(
            getattr(self, f"{name}_bias"), getattr(self, f"{name}_bias_scale"), zero, 0, -(2**31), 2**31 - 1,
            torch.int32,
        )  # fmt: skip
        return weight, bias

    def pair(self, x: Tensor, name: str, zero: int = 0) -> Tensor:
        arguments = (self.scales[name], zero, 0, 255, torch.uint8)
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *arguments), *arguments)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.pair(x, "x", 128)
        x = self.pair(torch.relu(nn.functional.conv2d(x, *self.parameters_of("first"), padding=1)), "first")
        y = self.pair(nn.functional.conv2d(x, *self.parameters_of("second"), padding=1), "second", 128)
        x = self.pair(torch.relu(y + x), "total")
        x = self.pair(x.mean((2, 3)), "total")
        logits = nn.functional.linear(x, *self.parameters_of("head"))
        return {"logits": logits, "best": logits.argmax(1)}


@cache
def inputs() -> Tensor:
    """Two images."""
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@cache
def plain() -> tuple[Program, onnx.ModelProto]:
    """The float program and its file; shared, not to be changed."""
    torch.manual_seed(0)
    program = capture(Plain().eval(), inputs())
    return program, lower(program)


@cache
def int8() -> tuple[Program, onnx.ModelProto]:
    """The quantized program of the same weights and its file; shared, not to be changed."""
    torch.manual_seed(0)
    with torch.no_grad():
        program = capture(Quantized(Plain().eval(), inputs()).eval(), inputs())
    return program, lower(program)


def with_tensor(
    model: onnx.ModelProto, name: str, change: Callable[[NDArray[np.generic]], NDArray[np.generic]]
) -> onnx.ModelProto:
    """A copy of a model with one stored tensor changed."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    stored = next(tensor for tensor in broken.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(stored).copy()
    stored.CopyFrom(onnx.numpy_helper.from_array(change(values).astype(values.dtype), name))
    return broken


def with_edge(model: onnx.ModelProto, node: str, position: int, source: str) -> onnx.ModelProto:
    """A copy of a model with one input of one node moved to another value."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    next(one for one in broken.graph.node if one.name == node).input[position] = source
    return broken


def with_own_tensor(
    model: onnx.ModelProto,
    node: str,
    position: int,
    change: Callable[[NDArray[np.generic]], NDArray[np.generic]],
) -> onnx.ModelProto:
    """A copy in which one node reads a changed copy of one of its stored tensors (which others may share)."""
    reader = next(one for one in model.graph.node if one.name == node)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == reader.input[position])
    values = onnx.numpy_helper.to_array(stored)
    broken = with_edge(model, node, position, "changed")
    changed = np.asarray(change(values.copy()), values.dtype)
    broken.graph.initializer.append(onnx.numpy_helper.from_array(changed, "changed"))
    return broken

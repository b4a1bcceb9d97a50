"""Fake inputs of a program: one symbol per name in the signature, sizes of the example as its hints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from fxcompress.graph.signature import Signature


def fake_inputs(signature: Signature, flat_example: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A fake tensor per input, of the example's dtype and device, in a new fake mode.

    Dimensions that share a name in `signature.dynamic` share a symbol; the first size seen is its hint.
    """
    shape_env = ShapeEnv()
    mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=False)
    sizes: dict[str, torch.SymInt | int] = {}
    fakes: list[torch.Tensor] = []
    for name, tensor in zip(signature.inputs, flat_example, strict=True):
        shape: list[torch.SymInt | int] = list(tensor.shape)
        for dim, symbol in signature.dynamic.get(name, {}).items():
            if symbol not in sizes:
                sizes[symbol] = _symbol(shape_env, symbol, tensor.shape[dim])
            shape[dim] = sizes[symbol]
        with mode:
            fakes.append(torch.empty(shape, dtype=tensor.dtype, device=tensor.device))
    return fakes


def _symbol(shape_env: ShapeEnv, name: str, hint: int) -> torch.SymInt | int:
    source = ConstantSource(name)
    expression = shape_env.create_symbol(
        hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, do_not_specialize_zero_one=hint < 2
    )
    size: torch.SymInt | int = shape_env.create_symintnode(expression, hint=hint, source=source)
    return size

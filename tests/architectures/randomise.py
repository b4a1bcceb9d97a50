"""Parameters that hide nothing: what starts at zero or one is drawn at random, and signals keep their scale.

A gate at zero, a norm at one or a bias at zero makes a wrong channel selection invisible. Deep random
networks also drown or explode, so weights are scaled by fan-in and batch-norm statistics are measured on a
batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D


def randomise(model: nn.Module, seed: int, inputs: tuple[Any, ...] | dict[str, Any]) -> nn.Module:
    """Draw all parameters in place, measure batch-norm statistics on `inputs`, return `model` in eval.

    `inputs` are the model's positional (tuple) or keyword (dict) inputs, with a batch of at least two.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(_draw(module, name, parameter, generator))
    measure_statistics(model, inputs)
    return model.eval()


def measure_statistics(model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any]) -> None:
    """Set every batch norm's running statistics to those of `inputs`; dropout stays off."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean: after one pass, the statistics of that pass
        norm.train()
    with torch.no_grad():
        _ = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _draw(module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if isinstance(module, nn.Embedding):
        return 0.5 * noise
    if parameter.dim() == 1:
        centred_on_one = name != "bias"  # norm weights, LayerScale
        return 1 + 0.3 * noise.clamp(-2, 2) if centred_on_one else 0.2 * noise
    fan_in = _fan_in(module, parameter)
    return 0.5 * noise if fan_in is None else 1.3 * fan_in**-0.5 * noise


def _fan_in(module: nn.Module, weight: Tensor) -> float | None:
    """How many products one output element sums; None for tensors that are added, such as positions."""
    if isinstance(module, Conv1D):
        return weight.shape[0]
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        kernel, stride = weight[0, 0].numel(), torch.tensor(module.stride).prod().item()
        return weight.shape[0] / module.groups * kernel / stride
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return weight[0].numel()
    return None

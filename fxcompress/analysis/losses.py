"""The loss that saliencies are measured with where the caller gives none.

With labels: cross-entropy for integers, half the squared error for numbers. Without: the label is drawn from
what the model itself predicts, a class from its own softmax, else the output plus unit noise. Either is the
likelihood of the model's own distribution, whose squared gradients are its Fisher information.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxcompress.errors import InputError

_HINT = "pass Prune(loss=...), a function loss(outputs, label) -> scalar"


def own_loss(outputs: Mapping[str, Any], label: Any, generator: torch.Generator) -> Tensor:
    """The loss of a batch, summed over samples.

    Args:
        outputs: by name; only floating tensors count.
        label: a tensor (or list) of classes or numbers, None where there is none.
        generator: draws labels where there are none.

    Raises:
        InputError: no output that a loss could be taken of, or a label that fits none.
    """
    floating = [
        value for value in outputs.values() if isinstance(value, Tensor) and value.is_floating_point()
    ]
    if not floating:
        raise InputError("no output is a floating tensor: there is no loss to differentiate", hint=_HINT)
    if label is None:
        return torch.stack([_against_itself(value, generator) for value in floating]).sum()
    wanted = _tensor(label)
    for value in floating:
        found = _against(value, wanted)
        if found is not None:
            return found
    raise InputError(
        f"a label of shape {list(wanted.shape)} and {wanted.dtype} fits no output (their shapes: "
        f"{', '.join(str(list(value.shape)) for value in floating)})",
        hint=_HINT,
    )


def _tensor(label: Any) -> Tensor:
    if isinstance(label, Tensor):
        return label
    try:
        return torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"a label of type {type(label).__name__} is not understood", hint=_HINT) from error


IGNORED = -100
"""The label of a sample that has none, as in `torch.nn.functional.cross_entropy`."""


def _against(output: Tensor, label: Tensor) -> Tensor | None:
    """The loss of one output; None where the label does not fit it."""
    if label.is_floating_point():
        return 0.5 * (output - label).square().sum() if label.shape == output.shape else None
    if output.dim() < 2 or label.dtype == torch.bool:
        return None
    if label.shape == output.shape[:-1]:
        logits = output.movedim(-1, 1)
    elif label.shape == output.shape[:1] + output.shape[2:]:
        logits = output
    else:
        return None
    classes = logits.shape[1]
    odd = (label >= classes) | ((label < 0) & (label != IGNORED))
    if bool(odd.any()):
        raise InputError(
            f"a label is {int(label[odd][0])}, and the model has {classes} classes",
            hint=f"labels are whole numbers from 0 to {classes - 1}, or {IGNORED} for none",
        )
    return functional.cross_entropy(logits, label.long(), reduction="sum")


def _against_itself(output: Tensor, generator: torch.Generator) -> Tensor:
    """The loss for a label drawn from the model's own prediction."""
    if not bool(output.isfinite().all()):
        return output.sum()  # which the caller refuses, since it is no number
    if output.dim() == 2 and output.shape[1] > 1:
        drawn = torch.multinomial(output.detach().double().softmax(1), 1, generator=generator)[:, 0]
        return functional.cross_entropy(output, drawn, reduction="sum")
    noise = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return -(output * noise).sum()

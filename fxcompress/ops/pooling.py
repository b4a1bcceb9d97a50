"""Which average pools have one window that holds the whole image: the mean over it, whatever the kernel."""

from __future__ import annotations

import torch
from torch.fx import Node

from fxcompress.graph import walk
from fxcompress.ops.arguments import arguments


def not_over_everything(node: Node) -> str | None:
    """Why an `avg_pool2d` is no mean over its image; None where it is one.

    torch divides by the part of the window that lies on the image, whatever the kernel's size.
    """
    bound = arguments(node)
    before, after = walk.value(bound["self"]), walk.value(node)
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return "pools something other than a tensor"
    image = before.shape[-2:]
    if any(isinstance(size, torch.SymInt) for size in image):
        return "pools an image whose size varies"
    kernel = list(bound["kernel_size"])
    kernel = kernel * 2 if len(kernel) == 1 else kernel
    if any(size < whole for size, whole in zip(kernel, image, strict=True)) or list(after.shape[-2:]) != [
        1,
        1,
    ]:
        return "has more than one window"
    if any(bound["padding"]):
        return "pads"
    if bound["divisor_override"] is not None:
        return "divides by a number of its own"
    return None

"""How much an object keeps."""

from __future__ import annotations

import torch


def held(thing: object) -> int:
    """Bytes of the tensors and lists that an object keeps, all the way down."""
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    if isinstance(thing, list | tuple):
        return 8 * len(thing) + sum(held(item) for item in thing)
    return sum(held(item) for item in vars(thing).values()) if hasattr(thing, "__dict__") else 8

"""The targets that can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fxcompress.errors import NotSupported
from fxcompress.targets.onnxruntime import onnxruntime
from fxcompress.targets.target import Target

TARGETS: Mapping[str, Callable[[], Target]] = MappingProxyType({"onnxruntime": onnxruntime})


def resolve(target: str | Target) -> Target:
    """Return the target of that name, described for this machine; a `Target` is returned as it is.

    Raises:
        NotSupported: there is no target of that name.
    """
    if isinstance(target, Target):
        return target
    if target not in TARGETS:
        raise NotSupported(f"there is no target {target!r}", hint=f"the targets are: {', '.join(TARGETS)}")
    return TARGETS[target]()

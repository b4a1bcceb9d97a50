"""The targets that can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fxcompress.errors import InputError, NotSupported
from fxcompress.targets.onnxruntime import onnxruntime
from fxcompress.targets.openvino import openvino
from fxcompress.targets.portable import portable
from fxcompress.targets.target import Target
from fxcompress.targets.tensorrt import tensorrt

TARGETS: Mapping[str, Callable[[], Target]] = MappingProxyType(
    {"onnxruntime": onnxruntime, "openvino": openvino, "tensorrt": tensorrt, "portable": portable}
)


def resolve(target: str | Target) -> Target:
    """Return the target of that name, described for this machine; a `Target` is returned as it is.

    Raises:
        InputError: neither a name nor a `Target`.
        NotSupported: there is no target of that name.
    """
    if isinstance(target, Target):
        return target
    known = f"the targets are: {', '.join(TARGETS)}"
    if not isinstance(target, str):
        raise InputError(f"target={target!r} is neither a name nor a Target", hint=known)
    if target not in TARGETS:
        raise NotSupported(f"there is no target {target!r}", hint=known)
    return TARGETS[target]()

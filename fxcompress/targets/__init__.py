"""What a runtime can do, as data; one file per runtime."""

from fxcompress.targets.catalog import resolve as resolve
from fxcompress.targets.onnxruntime import onnxruntime as describe_onnxruntime
from fxcompress.targets.target import Target as Target

__all__ = ["Target", "describe_onnxruntime", "resolve"]

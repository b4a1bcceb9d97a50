"""The options of quantization on the command line become those of `Quantize`."""

from __future__ import annotations

import click
import pytest

from fxcompress.cli.precision import quantization
from fxcompress.errors import NotSupported
from fxcompress.plan.quantization_plan import Quantize


def test_what_is_stated_becomes_fields_and_the_rest_keeps_its_default() -> None:
    rules = {"precision": "full", "exclude": ("head*",), "calibrator": None}
    assert quantization("int8", rules) == Quantize("int8", precision="full", exclude=("head*",))
    assert quantization("float16", {"precision": None, "exclude": ()}) == Quantize("float16")
    assert quantization(None, {"precision": None, "exclude": ()}) is None


def test_options_without_a_mode_are_wrong_usage_and_a_mode_must_exist() -> None:
    with pytest.raises(click.UsageError, match="need --quantize"):
        quantization(None, {"exclude": ("head*",)})
    with pytest.raises(NotSupported, match="int3"):
        quantization("int3", {})

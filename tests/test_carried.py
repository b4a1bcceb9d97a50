"""Models that come quantized: what is refused, what is measured of them, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fxcompress
from fxcompress.api.attribution import attribution
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from tests.graph.prepared import IMAGES, eager, residual


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: fxcompress.optimize(model, IMAGES, prune=0.5), "cannot be removed"),
        (lambda model: fxcompress.prune_gradually(model, IMAGES, calibration=[IMAGES]), "cannot be removed"),
        (lambda model: fxcompress.optimize(model, IMAGES, quantize="int8", calibration=[IMAGES]), "twice"),
        (lambda model: fxcompress.optimize(model, IMAGES, quantize="float16"), "twice"),
    ],
)
def test_what_cannot_be_done_to_it_is_said_at_once(call: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(InputError, match=r"carries fake quantization[\s\S]*" + said) as caught:
        call(eager())
    assert "hint" in str(caught.value)


def test_its_own_quantization_is_what_sensitivity_measures() -> None:
    found = attribution(capture(residual(), IMAGES), [IMAGES, IMAGES + 0.1])
    assert {row.node for row in found.layers} >= {"conv2d", "conv2d_1", "linear"}
    assert all(0.0 <= row.alone < 0.2 for row in found.layers)
    assert all(row.snr_db > 20 for row in found.layers)

"""What `targets/openvino.py` claims, shown by the installed OpenVINO: each form runs in integers.

A failure here after an upgrade of OpenVINO means that the target has to be measured again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.errors import NotSupported
from fxcompress.lowering.lower import lower
from fxcompress.ops.quantization import Kind
from fxcompress.proof.integer import integer_bound
from fxcompress.proof.structure import structural_faults
from fxcompress.runtime import openvino as adapter
from fxcompress.runtime import optional
from fxcompress.runtime.session import SessionError
from fxcompress.targets.onnxruntime import VARIANTS
from fxcompress.targets.openvino import KERNELS, openvino
from tests.passes.models import Apply, Chain
from tests.plan.quantized import quantized
from tests.targets.forms import around, conv, form, head, pair

installed = pytest.mark.skipif(not adapter.available(), reason="OpenVINO is not installed")


def residual() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        return m.d(torch.relu(x + m.c(torch.relu(m.b(x)))))

    return Apply(forward, a=conv(), b=conv(), c=conv(), d=conv())


def _two_pools(x: Tensor) -> Tensor:
    """An addition of what no convolution makes: there is no accumulator to add to."""
    return F.max_pool2d(torch.relu(x), 2) + F.avg_pool2d(torch.relu(x), 2)


TARGET = openvino({"avx512f", "avx512_vnni"})
FORMS: dict[str, tuple[Callable[[], nn.Module], Counter[str]]] = {
    Kind.CONVOLUTION: (lambda: Chain(c=conv(), r=nn.ReLU(), d=conv(groups=16)), Counter(Convolution=2)),
    Kind.LINEAR: (head(lambda x: x.flatten(1), 1024), Counter(Convolution=1, FullyConnected=1, Reshape=1)),
    Kind.ADD: (around(_two_pools), Counter(Convolution=2, Eltwise=1)),
    "skip connection": (residual, Counter(Convolution=4)),
    Kind.MULTIPLY: (pair(lambda a, b: a * b), Counter(Convolution=3, Eltwise=1)),
    Kind.CONCATENATE: (
        pair(lambda a, b: torch.cat([torch.relu(a), b], 1), 32),
        Counter(Convolution=3, Concatenation=1),
    ),
    Kind.AVERAGE: (around(lambda x: F.avg_pool2d(x, 2)), Counter(Convolution=2, Pooling=1)),
    Kind.GLOBAL_AVERAGE: (
        lambda: Apply(
            lambda m, x: m.s(F.adaptive_avg_pool2d(torch.relu(m.c(x)), 1)), c=conv(), s=conv(16, 4, 1)
        ),
        Counter(Convolution=2, Reduce=1),
    ),
    "layout": (around(lambda x: F.pixel_shuffle(x, 2), 4), Counter(Convolution=2, DepthToSpace=1)),
    "pooling of maxima": (
        around(lambda x: F.max_pool2d(torch.relu(x), 2)),
        Counter(Convolution=2, Pooling=1),
    ),
    "hard-swish": (around(F.hardswish), Counter(Convolution=2)),
}


def test_every_kind_that_is_claimed_has_a_form():
    assert set(KERNELS) <= set(FORMS)


@installed
@pytest.mark.parametrize("name", FORMS)
def test_openvino_executes_what_the_plan_intends(name: str):
    torch.manual_seed(0)
    build, expected = FORMS[name]
    example = (torch.randn(3, 16, 8, 8),)
    before, _, after = quantized(build(), example, target=TARGET)
    model = lower(after)
    layers = adapter.layers(adapter.compiled(model.SerializeToString(), exact=True))
    shown = Counter(layer.kind for layer in layers if layer.integer)
    assert {kind: shown[kind] for kind in expected} == dict(expected)
    assert not any(layer.kind == "Convert" for layer in layers), "a conversion between integers and floats"
    assert structural_faults(model, TARGET) == ()
    integer_bound(before, after, model, example, optimize=False)
    if name in KERNELS:
        claimed = KERNELS[Kind(name)].name
        assert not claimed or shown[claimed], f"no {claimed} runs in integers"


@installed
def test_a_skip_connection_is_added_to_the_accumulator():
    layers = _layers(residual())
    assert not any(layer.kind == "Eltwise" for layer in layers)


@installed
def test_without_the_rules_the_same_layout_costs_conversions():
    """The negative control: a file with a pair after layout, as ONNX Runtime wants it."""
    example = (torch.randn(3, 16, 8, 8),)
    _, _, after = quantized(around(lambda x: F.pixel_shuffle(x, 2), 4)(), example)
    layers = adapter.layers(adapter.compiled(lower(after).SerializeToString(), exact=True))
    assert any(layer.kind == "Convert" for layer in layers)


@installed
def test_outputs_are_those_of_the_program():
    torch.manual_seed(0)
    example = (torch.randn(3, 16, 8, 8),)
    before, _, after = quantized(residual(), example, target=TARGET)
    session = adapter.compiled(lower(after).SerializeToString(), exact=True)
    found = adapter.run(session, {after.signature.inputs[0]: example[0].numpy()})
    (values,) = found.values()
    with torch.no_grad():
        wanted, exact = after(*example).numpy(), before(*example).numpy()
    assert np.linalg.norm(values - wanted) <= 0.5 * np.linalg.norm(wanted - exact)


@installed
def test_what_openvino_does_not_read_is_a_typed_error():
    with pytest.raises(SessionError, match="OpenVINO does not accept"):
        adapter.compiled(b"no model")


def test_a_missing_openvino_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    assert not adapter.available()
    with pytest.raises(NotSupported, match="openvino cannot be imported") as caught:
        adapter.compiled(b"")
    assert "fxcompress[openvino]" in (caught.value.hint or "")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_cpu_decides_the_bits_of_weights(variant):
    target = openvino(variant.needs)
    assert (target.weight_bits, target.channel_block) == (variant.weight_bits, variant.channel_block)


def test_files_for_openvino_are_made_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optional.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    item = form("conv_relu")
    _, plan, _ = quantized(item.build(), (torch.randn(item.shape),), target=TARGET)
    assert set(plan.intended.values()) == {"Convolution"}


def _layers(model: nn.Module) -> tuple[adapter.Layer, ...]:
    _, _, after = quantized(model, (torch.randn(3, 16, 8, 8),), target=TARGET)
    return adapter.layers(adapter.compiled(lower(after).SerializeToString(), exact=True))

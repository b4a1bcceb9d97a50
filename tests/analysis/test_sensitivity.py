"""Attribution against its definition, each layer quantized alone by hand, and a layer known to hurt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.analysis.sensitivity import PIECE, Sensitivity, sensitivity
from fxcompress.analysis.switched import Switched
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.plan.quantization_plan import Quantize
from fxcompress.targets.portable import portable
from fxcompress.targets.tensorrt import tensorrt
from tests.passes.models import Apply, Chain
from tests.plan.quantized import VNNI, planned, quantized
from tests.targets.forms import conv


class Net(nn.Module):
    """Convolutions with a skip connection, a gate, padding, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.f = conv(3), conv(), conv(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        x = x + self.b(F.pad(x, (1, 0, 0, 1))[:, :, 1:, :-1])
        x = F.max_pool2d(torch.relu(self.c(x)), 2)
        return self.f(x.mean((2, 3)))


class Hard(nn.Module):
    """Hard sigmoids, which int8 has no operator for: they are read as other integers than were written."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.f = conv(3), conv(), conv(16, 16), nn.Linear(16, 5)
        self.d = nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.a(x))
        x = self.d(F.pad(F.hardsigmoid(x), (1, 1, 1, 1)))
        x = x * F.hardsigmoid(3.0 * self.b(x.mean((2, 3), keepdim=True)))
        return self.f(F.hardswish(4.0 * self.c(x)).mean((2, 3)))


DATA = [torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(3)]


def study(model: nn.Module, target=VNNI, **options: object) -> tuple[Program, Program, Sensitivity]:
    before, _, after = quantized(model, (DATA[0],), target=target)
    return before, after, sensitivity(before, after, DATA, **options)


@pytest.mark.parametrize("target", [VNNI, tensorrt(), portable()], ids=lambda target: target.name)
def test_hard_sigmoids_between_other_integers_are_computed_in_float(target):
    """Once they were left out, and the outputs of MobileNetV3 were infinite with any layer in integers."""
    before, after, found = study(Hard(), target, samples=3)
    values = Switched(before, after).float_values([DATA[0]])
    (outputs,) = values[walk.output_node(after)]
    with torch.no_grad():
        torch.testing.assert_close(outputs, before(DATA[0]))
    assert {"conv2d", "conv2d_2", "linear"} <= {row.node for row in found.layers}
    assert all(0.0 < (row.alone or 0.0) < 0.2 for row in found.layers if row.node.startswith("conv2d"))
    assert 0.0 < found.total < 0.3


def test_padding_by_sizes_of_the_image() -> None:
    """Integers padded by a size that is no number."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = F.hardswish(model.a(x))
        return model.b(F.pad(x, (x.shape[3] // 4, 1, x.shape[2] // 4, 1)))

    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8, max=64)}
    program = capture(Apply(forward, a=conv(3), b=conv()).eval(), (DATA[0],), dynamic_shapes={"x": sizes})
    plan = planned(program, Quantize(precision="full"))
    after = QuantizeTensors(plan).run(program).program
    assert any("pad" in name for name in plan.kernels)
    (outputs,) = Switched(program, after).float_values([DATA[0]])[walk.output_node(after)]
    with torch.no_grad():
        torch.testing.assert_close(outputs, program(DATA[0]))


@pytest.mark.parametrize("spared", ["conv2d_1", "conv2d_2"])
def test_a_guarded_convolution_reads_scales_by_channel(spared: str):
    torch.manual_seed(0)
    before, plan, after = quantized(Hard(), (DATA[0],), options=Quantize(exclude=(spared,)))
    assert plan.guarded == ((spared,) if spared == "conv2d_2" else ())
    runner = Switched(before, after)
    values = runner.float_values([DATA[0]])
    (outputs,) = values[walk.output_node(after)]
    with torch.no_grad():
        torch.testing.assert_close(outputs, before(DATA[0]))
    found = sensitivity(before, after, DATA, samples=3)
    assert all(0.0 < (row.alone or 0.0) < 0.2 for row in found.layers if row.node.startswith("conv2d"))


@pytest.mark.parametrize("target", [VNNI, tensorrt(), portable()], ids=lambda target: target.name)
def test_switched_off_pairs_leave_the_float_program(target):
    before, after, found = study(Net(), target, samples=3)
    values = Switched(before, after).float_values([DATA[0]])
    (outputs,) = values[walk.output_node(after)]
    with torch.no_grad():
        torch.testing.assert_close(outputs, before(DATA[0]))
    assert {"conv2d", "conv2d_1", "conv2d_2", "linear"} <= {row.node for row in found.layers}
    assert all(0.0 < (row.alone or 0.0) < 0.2 for row in found.layers if row.node.startswith("conv2d"))
    assert all(row.source and "test_sensitivity.py" in row.source for row in found.layers)
    assert found.samples == 3
    assert 0.0 < found.total < 0.2


def test_a_layer_alone_is_that_layer_quantized_alone():
    """Against a program that is quantized at one layer only; outputs of that layer stay in float."""
    model = Chain(a=nn.Linear(6, 16), r=nn.ReLU(), b=nn.Linear(16, 16), s=nn.ReLU(), c=nn.Linear(16, 4))
    example = (torch.randn(5, 6),)
    before, _, after = quantized(model, example)
    found = {row.node: row for row in sensitivity(before, after, [example[0]], samples=5).layers}
    for name in ("linear", "linear_1", "linear_2"):
        others = tuple(other for other in found if other != name)
        plan = planned(before, Quantize(exclude=others), VNNI)
        single = QuantizeTensors(plan).run(before).program
        with torch.no_grad():
            wanted, exact = single(*example), before(*example)
        expected = float((wanted - exact).norm() / exact.norm())
        assert found[name].alone == pytest.approx(expected, rel=0.02)


def test_the_output_that_moves_most_counts_alone():
    """Once an output a thousand times larger, which the layer does not touch, hid what it does."""
    layers = {"a": nn.Linear(16, 32), "b": nn.Linear(32, 8)}
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))

    def measured(function) -> Sensitivity:
        before, _, after = quantized(Apply(function, **layers), (x,))
        return sensitivity(before, after, [x])

    single = measured(lambda m, x: m.b(torch.relu(m.a(x))))
    double = measured(lambda m, x: (m.b(torch.relu(m.a(x))), torch.exp(x) * 1e4, x > 0))
    assert double.total == pytest.approx(single.total, rel=1e-6)
    wanted = {row.node: row.alone for row in single.layers}
    assert {row.node: row.alone for row in double.layers} == pytest.approx(wanted, rel=1e-6)


def test_signal_to_noise_and_total_are_those_of_the_quantized_program():
    before, after, found = study(Net(), samples=5)
    with torch.no_grad():
        mine, exact = after(DATA[0]), before(DATA[0])
    assert found.total == pytest.approx(float((mine - exact).norm() / exact.norm()), rel=1e-4)
    last = next(row for row in found.layers if row.node == "linear")
    assert last.snr_db == pytest.approx(-20.0 * float(torch.log10(torch.tensor(found.total))), abs=0.1)


def test_a_layer_with_one_huge_weight_is_found():
    torch.manual_seed(0)
    model = Chain(a=conv(3), r=nn.ReLU(), b=conv(), s=nn.ReLU(), c=conv(16, 8))
    with torch.no_grad():
        model.b.weight[:, 0, 1, 1] = 40.0
        model.a.weight[0] = model.a.weight[0] * 0.02
    _, _, found = study(model, samples=5)
    assert found.worst(1)[0].node == "conv2d_1"
    assert found.worst(1)[0].alone > 2.0 * found.layers[1].alone


def test_the_limit_measures_the_noisiest_and_reports_all():
    _, _, everything = study(Net(), samples=5)
    _, _, limited = study(Net(), samples=5, limit=2)
    assert len(limited.layers) == len(everything.layers)
    measured = [row for row in limited.layers if row.alone is not None]
    assert len(measured) == 2
    assert limited.layers[:2] == tuple(measured)
    loudest = sorted(row.own_db for row in limited.layers)[:2]
    assert sorted(row.own_db for row in measured) == loudest


def test_samples_stream_in_pieces_and_no_more_are_read_than_asked_for():
    taken = []

    def data() -> Iterator[Tensor]:
        for index in range(100):
            taken.append(index)
            yield DATA[0][:3]

    before, _, after = quantized(Net(), (DATA[0],))
    found = sensitivity(before, after, data(), samples=PIECE + 3, limit=0)
    assert found.samples == PIECE + 3
    assert len(taken) == 3
    assert all(row.alone is None for row in found.layers)


def test_weights_that_two_layers_read_are_quantized_for_one_alone():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(x, m.w)), m.w)

    before, _, after = quantized(Apply(forward, w=torch.randn(6, 6)), (torch.randn(5, 6),))
    found = sensitivity(before, after, [torch.randn(5, 6)])
    first, second = sorted(found.layers, key=lambda row: row.node)
    assert first.alone != second.alone
    assert min(first.alone, second.alone) > 0.0


def test_what_cannot_be_is_refused():
    before, _, after = quantized(Net(), (DATA[0],))
    with pytest.raises(InputError, match="holds no batch"):
        sensitivity(before, after, [])
    for options in ({"samples": 0}, {"limit": -1}):
        with pytest.raises(InputError, match="must not be negative"):
            sensitivity(before, after, DATA, **options)


def test_a_clamp_of_indices_is_no_part_of_a_quantization() -> None:
    """Skipped as if it were, it would look up what the table does not have."""
    torch.manual_seed(0)
    parts = {"e": nn.Embedding(10, 16), "l": nn.Linear(16, 8)}
    model = Apply(lambda m, x: m.l(m.e(x.long().clamp(0, 9))), **parts).eval()
    x = torch.tensor([[1.0, 30.0, 5.0], [-3.0, 9.0, 2.0]])
    before, _, after = quantized(model, (x,), target=VNNI)
    found = sensitivity(before, after, [x])
    assert all(row.snr_db > 30 for row in found.layers)

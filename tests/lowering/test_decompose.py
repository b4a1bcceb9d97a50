from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import LoweringError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering import decompose as decompose_module
from fxcompress.lowering.decompose import ORIGIN, decompose, translatable
from fxcompress.lowering.lift import lift
from fxcompress.lowering.lower import lower
from fxcompress.lowering.provenance import values
from fxcompress.runtime.session import open_session, run

aten = torch.ops.aten


class Net(nn.Module):
    """A norm and a pool that have no ONNX form, and a split, beside operators that have one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        a, b = x.chunk(2, 1)
        return torch.cat([nn.functional.adaptive_avg_pool2d(a, 1), b.amax((2, 3), keepdim=True)], 1)


@pytest.fixture(scope="module")
def program() -> Program:
    net = Net().eval()
    net.norm.running_mean.normal_()
    return capture(net, torch.randn(2, 2, 5, 5))


def table() -> dict[object, object]:
    return dict(torch.export.default_decompositions().items())


def test_lifting_keeps_names_order_and_function(program: Program) -> None:
    lifted = lift(program)
    calls = [node.name for node in program.graph.nodes if node.op == "call_function"]
    assert [node.name for node in lifted.graph.nodes if node.op == "call_function"] == calls
    x = torch.randn(3, 2, 5, 5)
    with torch.no_grad():
        (result,) = lifted.module()(x)
        torch.testing.assert_close(result, program(x), rtol=0, atol=0)


def test_only_unknown_operators_are_taken_apart(program: Program) -> None:
    lifted = lift(program)
    before = {node.name: node.target for node in lifted.graph.nodes if node.op == "call_function"}
    assert not decompose(lifted.graph, table(), translatable())
    after = [node for node in lifted.graph.nodes if node.op == "call_function"]
    unknown = [node.target for node in after if node.target is not operator.getitem]
    assert all(target in translatable() for target in unknown)
    untouched = {node.name: node.target for node in after if ORIGIN not in node.meta}
    assert untouched.items() <= before.items()
    assert {node.meta[ORIGIN] for node in after if ORIGIN in node.meta} == {
        "batch_norm",
        "adaptive_avg_pool2d",
    }
    lifted.graph.lint()


def test_what_is_left_computes_the_same_for_any_batch(program: Program) -> None:
    lifted = lift(program)
    decompose(lifted.graph, table(), translatable())
    lifted.graph_module.recompile()
    tensors = [lifted.state_dict[spec.target] for spec in lifted.graph_signature.input_specs if spec.target]
    x = torch.randn(7, 2, 5, 5)
    with torch.no_grad():
        (result,) = lifted.graph_module(*tensors, x)
    torch.testing.assert_close(result, program(x), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_taken_apart_leaves_the_graph_alone(program: Program) -> None:
    lifted = lift(program)
    before = str(lifted.graph)
    assert decompose(lifted.graph, table(), translatable() - {aten.mean.dim}) == ("adaptive_avg_pool2d",)
    assert str(lifted.graph) == before


def test_then_the_whole_program_is_traced_and_names_survive(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = translatable() - {aten.mean.dim}
    monkeypatch.setattr(decompose_module, "translatable", lambda: known)
    model = lower(program)
    assert {"batch_norm", "relu", "adaptive_avg_pool2d", "cat"} <= set(values(model))
    x = torch.randn(3, 2, 5, 5)
    result = run(open_session(model), {"x": x.numpy()})["output"]
    torch.testing.assert_close(torch.from_numpy(result), program(x).detach(), rtol=1e-5, atol=1e-6)


UNTRANSLATED = {
    "threshold": lambda x: nn.functional.threshold(x, 0.1, 0.0),
    "hardshrink": nn.functional.hardshrink,
    "nan_to_num": torch.nan_to_num,
    "std": lambda x: x.std(1, keepdim=True),
    "special_expit": torch.special.expit,
}


class Applied(nn.Module):
    """An operator in the middle and, where `last`, once more at the end."""

    def __init__(self, operation, last: bool) -> None:
        super().__init__()
        self.layer, self.operation, self.last = nn.Linear(8, 8), operation, last

    def forward(self, x: Tensor) -> Tensor:
        y = self.operation(self.layer(x)) + x
        return self.operation(y) if self.last else y


@pytest.mark.parametrize("name", list(UNTRANSLATED))
@pytest.mark.parametrize("last", [False, True])
def test_an_operator_without_an_onnx_form_is_written_in_parts(name: str, last: bool) -> None:
    program = capture(Applied(UNTRANSLATED[name], last).eval(), torch.randn(2, 8))
    x = torch.randn(5, 8)
    result = run(open_session(lower(program)), {"x": x.numpy()})["output"]
    torch.testing.assert_close(torch.from_numpy(result), program(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operation", [torch.erfinv, lambda x: x.cumprod(1)])
def test_an_operator_whose_parts_have_none_either_is_named(operation) -> None:
    program = capture(Applied(operation, last=False).eval(), torch.randn(2, 8))
    with pytest.raises(LoweringError) as caught:
        lower(program)
    culprit = next(node for node in program.graph.nodes if "linear" in str(node.args))
    assert f"%{culprit.name} " in (caught.value.node or "")
    assert "self.operation(self.layer(x))" in (caught.value.source or "")

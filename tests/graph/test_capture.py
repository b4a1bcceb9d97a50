"""Capture: what comes in, what the program is, and what is refused with which words."""

from __future__ import annotations

import collections
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from fxcompress.errors import CaptureError, InputError, UnsafeFile
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from tests.graph.models import Apply, SmallNet, Tied, image


def operators(program: Program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_a_small_network_is_captured_with_a_dynamic_batch() -> None:
    model = SmallNet().eval()
    program = capture(model, image(1, 3, 8))
    well_formed(program)
    assert program.signature.inputs == ("x",)
    assert program.signature.outputs == ("output",)
    assert program.signature.dynamic == {"x": {0: "batch"}}
    assert program.example.args[0].shape[0] == 2, "a batch of one is grown, since tracing would fix it"
    assert "aten.relu.default" in operators(program)
    assert not any(name.endswith("_.default") or "assert" in name for name in operators(program))
    for batch in (1, 2, 5):
        torch.testing.assert_close(program(image(batch, 3, 8)), model(image(batch, 3, 8)))


def test_parameters_keep_their_names_and_the_model_stays_as_it_was() -> None:
    model = SmallNet().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = capture(model, image(2, 3, 8))
    with torch.no_grad():
        for parameter in program.module.parameters():
            parameter.zero_()
    assert {name for name, _ in program.module.named_parameters()} == {n for n, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_module_called_twice_reads_one_tensor_node() -> None:
    program = capture(SmallNet().eval(), image(2, 3, 8))
    reads = [node for node in program.graph.nodes if node.op == "get_attr" and node.target == "fc.weight"]
    assert len(reads) == 1
    assert len(reads[0].users) == 2


def test_tied_weights_share_the_node_of_the_first_name() -> None:
    model = Tied().eval()
    program = capture(model, torch.randn(2, 6))
    targets = [node.target for node in program.graph.nodes if node.op == "get_attr"]
    assert targets.count("first.weight") == 1
    assert "second.weight" not in targets
    assert dict(program.module.named_parameters(remove_duplicate=False))["second.weight"] is (
        program.module.get_parameter("first.weight")
    )
    assert program.signature.outputs == ("hidden", "logits")
    found, expected = program(torch.ones(3, 6)), model(torch.ones(3, 6))
    torch.testing.assert_close(found, expected)


def test_tied_by_storage_is_tied_too() -> None:
    model = Tied().eval()
    model.second.weight = nn.Parameter(model.first.weight.data)  # another object on the same storage
    program = capture(model, torch.randn(2, 6))
    assert [node.target for node in program.graph.nodes if node.op == "get_attr"].count("first.weight") == 1
    assert "second.weight" in dict(program.module.named_parameters(remove_duplicate=False))


Pair = collections.namedtuple("Pair", ["low", "high"])


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda m, x: m.conv(x), ("output",)),
        (lambda m, x: (m.conv(x), x), ("output_0", "output_1")),
        (lambda m, x: (m.conv(x), None, 3), ("output_0",)),
        (lambda m, x: {"a": m.conv(x), "b": [x, x + 1]}, ("a", "b_0", "b_1")),
        (lambda m, x: Pair(m.conv(x), x), ("low", "high")),
    ],
)
def test_output_structures_become_plain_with_a_name_for_each_tensor(function: Any, names: Any) -> None:
    program = capture(Apply(function).eval(), image())
    assert program.signature.outputs == names
    assert len(torch.utils._pytree.tree_leaves(program(image()))) == len(names)


def test_arguments_that_are_no_tensors_are_fixed_with_a_note() -> None:
    model = Apply(lambda m, x, scale, y, flag=True: m.conv(x) * scale + y if flag else x).eval()
    program = capture(model, (image(), 2.0, image(seed=1), True))
    assert program.signature.inputs[0] == "x"
    assert len(program.signature.inputs) == 2
    assert any("fixed at 2.0" in note for note in program.notes)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, scale: Any = None) -> torch.Tensor:
        y = self.fc(x)
        return y if mask is None else y * mask


def test_keyword_inputs_keep_their_names_in_any_order() -> None:
    model = TwoInputs().eval()
    program = capture(model, {"mask": torch.ones(2, 5, 1), "x": torch.randn(2, 5, 4)})
    x, mask = torch.randn(3, 5, 4), torch.rand(3, 5, 1)
    assert set(program.signature.inputs) == {"x", "mask"}
    torch.testing.assert_close(program(x=x, mask=mask), model(x, mask))
    torch.testing.assert_close(program(mask=mask, x=x), model(x, mask))


def test_an_input_without_the_batch_stays_static() -> None:
    program = capture(TwoInputs().eval(), (torch.randn(2, 5, 4), torch.ones(5, 1)))
    assert program.signature.dynamic == {"x": {0: "batch"}}


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": {1: "length"}, "mask": {1: "length"}},
        {"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
        {"x": {1: Dim("length")}, "mask": {1: Dim("length")}},
        {
            "x": (Dim("batch"), Dim("length", max=64), None),
            "mask": (Dim("batch"), Dim("length", max=64), None),
        },
        ({0: "batch", 1: "length"}, {0: "batch", 1: "length"}),
    ],
)
def test_other_dimensions_are_dynamic_on_request(shapes: Any) -> None:
    model = TwoInputs().eval()
    program = capture(model, (torch.randn(1, 5, 4), torch.ones(1, 5, 1)), dynamic_shapes=shapes)
    expected = {0: "batch", 1: "length"}
    assert program.signature.dynamic == {"x": expected, "mask": expected}
    x, mask = torch.randn(3, 7, 4), torch.rand(3, 7, 1)
    torch.testing.assert_close(program(x, mask), model(x, mask))


@pytest.mark.parametrize("mark", [Dim.DYNAMIC, Dim.AUTO])
def test_torch_marks_are_understood(mark: Any) -> None:
    program = capture(TwoInputs().eval(), torch.randn(2, 5, 4), dynamic_shapes={"x": {1: mark}})
    assert set(program.signature.dynamic["x"]) == {0, 1}
    assert program(torch.ones(2, 9, 4)).shape == (2, 9, 4)


def test_an_automatic_dimension_that_the_model_fixes_is_noted() -> None:
    model = Apply(lambda m, x: m.conv(x) + torch.ones(4, 6, 6)).eval()
    program = capture(model, image(), dynamic_shapes={"x": {2: Dim.AUTO}})
    assert program.signature.dynamic == {"x": {0: "batch"}}
    assert any("fixed" in note for note in program.notes)


@pytest.mark.parametrize(
    "shapes", [{"nope": {1: "length"}}, {"x": {7: "length"}}, {"x": "length"}, ({}, {}, {}, {}), 5]
)
def test_wrong_dynamic_shapes_are_explained(shapes: Any) -> None:
    with pytest.raises(InputError):
        capture(TwoInputs().eval(), torch.randn(2, 5, 4), dynamic_shapes=shapes)


def test_a_dimension_that_cannot_vary_is_refused_when_asked_for() -> None:
    with pytest.raises(CaptureError, match="channels"):
        capture(TwoInputs().eval(), torch.randn(2, 5, 4), dynamic_shapes={"x": {2: "channels"}})


def test_a_model_that_forbids_a_dynamic_batch_is_static_with_the_users_own_batch() -> None:
    model = Apply(lambda m, x: m.conv(x).reshape(int(x.shape[0]) * 2, -1)).eval()
    program = capture(model, image(1))
    assert program.signature.dynamic == {}
    assert program.example.args[0].shape[0] == 1
    assert any("batch is fixed at 1" in note for note in program.notes)
    with pytest.raises(InputError, match="shape"):
        program(image(3))


def test_a_trace_that_specialises_silently_is_noticed() -> None:
    model = Apply(lambda m, x: m.conv(x) * (2 if x.shape[0] > 1 else 1)).eval()
    program = capture(model, image(1))
    assert program.signature.dynamic == {}
    torch.testing.assert_close(program(image(1)), model(image(1)))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x) if x.sum() > 0 else x,
        lambda m, x: m.conv(x)[:, int(x.argmax()) % 4],
        lambda m, x: m.conv(x) + float(x.mean()),
    ],
)
def test_control_flow_on_data_is_refused_with_the_users_line(
    function: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Apply(function).eval(), image())
    assert caught.value.source is not None
    assert "test_capture.py" in caught.value.source
    assert caught.value.hint is not None
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_model_that_fails_on_its_inputs_is_told_so() -> None:
    model = SmallNet().eval()
    for wrong in (
        image(2, 4, 8),
        (image(2, 3, 8), image(2, 3, 8)),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
    ):
        with pytest.raises(InputError, match="fails on the example inputs"):
            capture(model, wrong)


@pytest.mark.parametrize("model", [SmallNet(), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))])
def test_training_mode_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="training mode") as caught:
        capture(model.train(), torch.randn(2, 3, 8, 8))
    assert "eval()" in str(caught.value.hint)


def test_a_model_without_modes_needs_no_eval() -> None:
    assert capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))(torch.ones(1, 4)).shape == (
        1,
        4,
    )


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="not a model"):
        capture(3)  # type: ignore[arg-type]


def test_wrappers_around_a_model_are_looked_through_or_refused() -> None:
    inner = nn.Linear(4, 4).eval()
    for wrapped in (torch.compile(inner), nn.DataParallel(inner)):
        assert "weight" in dict(capture(wrapped.eval(), torch.randn(2, 4)).module.named_parameters())
    with pytest.raises(InputError, match="meta"):
        capture(nn.Linear(4, 4, device="meta"), torch.randn(2, 4))


def test_what_training_will_not_bring_back_is_noted() -> None:
    program = capture(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 5, 8))
    assert any("MultiheadAttention" in note and "self.training" in note for note in program.notes)
    norm = nn.Sequential(nn.BatchNorm1d(4, momentum=None)).eval()
    assert any("cumulative" in note for note in capture(norm, torch.randn(2, 4)).notes)
    assert capture(SmallNet().eval(), image(2, 3, 8)).notes == []


def test_spatial_dimensions_may_vary_together_with_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    program = capture(model, image(1, 3, 8), dynamic_shapes=({0: "batch", 2: "height", 3: "width"},))
    wide = torch.randn(3, 3, 12, 20)
    torch.testing.assert_close(program(wide), model(wide))


def test_constants_are_folded_and_parameters_are_not() -> None:
    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(6, 6)
        mask[2:, :] = 1
        positions = torch.arange(6).float() / 6
        return model.conv(x) * (mask + positions) + model.conv.weight.exp().sum() + model.state.sum()

    model = Apply(forward).eval()
    program = capture(model, image())
    stored = [node.target for node in program.graph.nodes if node.op == "get_attr"]
    assert sum("constant" in str(name) for name in stored) == 1
    assert "aten.exp.default" in operators(program)
    assert "state" in stored
    torch.testing.assert_close(program(image(3)), model(image(3)))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.fc(x)
        with torch.autocast("cpu", enabled=False):
            return self.fc(y) + 1


def test_wrappers_that_change_nothing_are_inlined() -> None:
    model = Frozen().eval()
    program = capture(model, torch.randn(2, 4))
    assert operators(program) == ["aten.linear.default", "aten.linear.default", "aten.add.Tensor"]
    torch.testing.assert_close(program(torch.ones(3, 4)), model(torch.ones(3, 4)))


def test_a_real_autocast_is_refused() -> None:
    class Cast(Frozen):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.fc(x)

    with pytest.raises(CaptureError, match="autocast"):
        capture(Cast().eval(), torch.randn(2, 4))


class Nested(nn.Module):
    """Two regions, each with another within, which torch gives the same names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for outer, inner, mix in ((self.a, self.b, torch.add), (self.b, self.c, torch.mul)):
            with torch.no_grad():
                x = outer(x)
                with torch.autocast("cpu", enabled=False):
                    y = mix(inner(x), x)
                z = y * 2
            x = z - y
        return x


def test_wrappers_within_wrappers_are_inlined_each_with_its_own_graph() -> None:
    model = Nested().eval()
    program = capture(model, torch.randn(2, 4))
    regions = [
        ["linear.default", "linear.default", mix, "mul.Tensor", "sub.Tensor"]
        for mix in ("add.Tensor", "mul.Tensor")
    ]
    assert operators(program) == [f"aten.{name}" for name in [*regions[0], *regions[1]]]
    reads = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    assert reads == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(program(torch.ones(3, 4)), model(torch.ones(3, 4)))


class Branches(nn.Module):
    """A choice between two layers that a graph holds as an operator."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.a, self.b, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), frozen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(not self.frozen):
            x = x * 2
            return torch.cond(x.sum() > 0, self.a, self.b, (x,))


@pytest.mark.parametrize("frozen", [False, True], ids=["bare", "within no_grad"])
def test_control_flow_operators_are_refused_by_name(frozen: bool) -> None:
    """Neither branch alone is the model: nothing may be inlined."""
    with pytest.raises(CaptureError, match="uses cond, a control-flow operator that cannot") as caught:
        capture(Branches(frozen).eval(), torch.randn(2, 4))
    assert "higher_order.cond" in str(caught.value.node)
    assert "without torch.cond" in str(caught.value.hint)
    assert "eval_with_key" not in str(caught.value.source)  # code of torch's is no line of the user's


def test_an_exported_program_keeps_its_static_batch_and_says_so() -> None:
    model = SmallNet().eval()
    program = capture(torch.export.export(model, (image(2, 3, 8),)))
    assert program.signature.dynamic == {}
    assert any("fixed" in note for note in program.notes)
    torch.testing.assert_close(program(image(2, 3, 8)), model(image(2, 3, 8)))


def test_a_decomposed_program_is_accepted_with_its_own_symbols() -> None:
    model = SmallNet().eval()
    exported = torch.export.export(model, (image(2, 3, 8),), dynamic_shapes={"x": {0: Dim("n")}})
    with warnings.catch_warnings(action="ignore"):  # torch warns about its own tree API
        exported = exported.run_decompositions()
    program = capture(exported)
    assert program.signature.dynamic == {"x": {0: "batch"}}
    torch.testing.assert_close(program(image(5, 3, 8)), model(image(5, 3, 8)))


def test_a_pt2_file_is_captured_and_others_are_refused(tmp_path: Any) -> None:
    model = SmallNet().eval()
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (image(2, 3, 8),)), path)
    for program in (capture(path), capture(str(path), trust=True)):
        torch.testing.assert_close(program(image(2, 3, 8)), model(image(2, 3, 8)))
    text = tmp_path / "text.pt2"
    text.write_text("no archive")
    for wrong in (text, tmp_path / "missing.pt2"):
        with pytest.raises(InputError):
            capture(wrong)
    with pytest.raises(InputError, match="pt2"):
        capture(text, trust=True)
    pickled = tmp_path / "pickled.pt2"
    torch.save(model, pickled)
    with pytest.raises((UnsafeFile, InputError)):
        capture(pickled)


def test_dynamic_dimensions_of_an_exported_program_are_its_own() -> None:
    exported = torch.export.export(nn.Linear(3, 2).eval(), (torch.randn(4, 3),))
    with pytest.raises(InputError, match="dynamic dimensions that it was exported with"):
        capture(exported, dynamic_shapes={"input": {0: "batch"}})

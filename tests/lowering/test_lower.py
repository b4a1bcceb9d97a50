"""The whole lowering, on small programs made for one question each."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import InputError, LoweringError
from fxcompress.graph.capture import capture
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.program import Program
from fxcompress.lowering import acceptance
from fxcompress.lowering import lower as lowering
from fxcompress.lowering.acceptance import accept, to_feeds
from fxcompress.lowering.lower import lower
from fxcompress.lowering.provenance import locate, values
from fxcompress.proof.exposure import inner_values
from fxcompress.runtime.session import open_session, run
from tests.architectures.programs import captured


class Function(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


class Small(nn.Module):
    """Convolutions, a norm, a pool by mean, a linear on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.token = nn.Linear(8, 6)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.conv(x)))
        tokens = self.token(x.flatten(2).transpose(1, 2))
        return {"logits": self.head(x.mean((2, 3))), "tokens": tokens}


@pytest.fixture(scope="module")
def small() -> Program:
    return capture(Small().eval(), torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def lowered(small: Program) -> onnx.ModelProto:
    return lower(small)


def dims(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    values_ = [*model.graph.input, *model.graph.output]
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values_
    }


def assert_computes(program: Program, model: onnx.ModelProto, *inputs: Tensor) -> None:
    names = [value.name for value in model.graph.input]
    results = run(open_session(model), to_feeds(names, inputs))
    for expected, result in zip(run_flat(program, inputs), results.values(), strict=True):
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_names_and_dimensions_are_the_programs(lowered: onnx.ModelProto) -> None:
    assert dims(lowered) == {"x": ["batch", 3, 8, 8], "logits": ["batch", 5], "tokens": ["batch", 36, 6]}
    assert lowered.opset_import[0].version == 20
    assert lowered.ir_version <= 10


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_dynamic(small: Program, lowered: onnx.ModelProto, batch: int) -> None:
    assert_computes(small, lowered, torch.randn(batch, 3, 8, 8))


def test_asked_names_and_opset(small: Program) -> None:
    model = lower(small, opset=21, input_names=["image"], output_names=["scores", "features"])
    assert list(dims(model)) == ["image", "scores", "features"]
    assert model.opset_import[0].version == 21
    assert_computes(small, model, torch.randn(3, 3, 8, 8))


def test_an_old_opset_is_reached_by_conversion(small: Program) -> None:
    model = lower(small, opset=17)
    assert model.opset_import[0].version == 17
    assert_computes(small, model, torch.randn(3, 3, 8, 8))
    assert locate(model).keys() >= {"relu", "linear"}


def test_names_that_do_not_fit_are_refused_before_any_work(small: Program) -> None:
    with pytest.raises(InputError, match="input_names"):
        lower(small, input_names=["a", "b"])
    with pytest.raises(InputError, match="opset"):
        lower(small, opset=4)


def test_every_program_node_can_be_found(small: Program, lowered: onnx.ModelProto) -> None:
    where, made = locate(lowered), values(lowered)
    nodes = [node.name for node in small.graph.nodes if node.op == "call_function"]
    assert set(nodes) <= set(where)
    own = {"batch_norm", "relu", "linear", "linear_1", "mean", "transpose", "flatten"}
    assert own <= set(made), "these leave a value of their own"
    assert where["conv2d"] == "batch_norm", "folded into one convolution, and the file says so"
    assert {node.op_type for node in lowered.graph.node if node.name == "batch_norm"} == {"Conv"}


class Keep(Executor):
    """Keeps every tensor that a program makes."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.kept: dict[str, Tensor] = {}

    def after(self, node: torch.fx.Node, value: object) -> object:
        if isinstance(value, Tensor):
            self.kept[node.name] = value
        return value


@pytest.mark.parametrize("name", [None, "hf_gpt2", "mobilenet_hardswish"])
def test_values_in_the_file_are_the_values_of_the_nodes(
    name: str | None, request: pytest.FixtureRequest
) -> None:
    program = request.getfixturevalue("small") if name is None else captured(name)
    model, inputs = lower(program), program.flat_example()
    keep = Keep(program)
    with torch.no_grad():
        keep.run_flat(inputs)
    inner, _ = inner_values(model, list(keep.kept), inputs)
    assert len(inner) >= 0.6 * len([node for node in program.graph.nodes if node.op == "call_function"])
    for node, theirs in inner.items():
        mine = keep.kept[node].numpy()
        assert theirs.shape == mine.shape, node
        np.testing.assert_allclose(
            theirs, mine, rtol=1e-3, atol=1e-3 * max(1.0, np.abs(mine).max()), err_msg=node
        )


def test_nothing_of_this_machine_is_in_the_file(lowered: onnx.ModelProto) -> None:
    raw = lowered.SerializeToString()
    for trace in (b"site-packages", b".py", b"File ", b"stack_trace", b"pkg.torch"):
        assert trace not in raw
    assert not re.search(rb"/(home|root|tmp|work|usr|opt)/", raw)
    assert not lowered.graph.value_info
    assert not lowered.metadata_props


def test_module_paths_are_kept(lowered: onnx.ModelProto) -> None:
    paths = {
        node.name: entry.value
        for node in lowered.graph.node
        for entry in node.metadata_props
        if entry.key == "fxcompress.module"
    }
    assert paths["linear"] == "token"
    assert paths["batch_norm"] == "norm"
    assert paths["linear/MatMul"] == "token"


def test_metadata_is_a_small_part_of_the_file(small: Program, lowered: onnx.ModelProto) -> None:
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in small.module.state_dict().values())
    assert len(lowered.SerializeToString()) < tensors + 160 * len(lowered.graph.node)


def test_weights_keep_their_names(lowered: onnx.ModelProto) -> None:
    names = {tensor.name for tensor in lowered.graph.initializer}
    assert {"conv.weight", "token.weight", "token.bias", "head.weight", "head.bias"} <= names


def test_a_mean_over_the_image_is_a_global_average_pool(lowered: onnx.ModelProto) -> None:
    operators = [node.op_type for node in lowered.graph.node]
    assert "GlobalAveragePool" in operators
    assert "ReduceMean" not in operators


def test_the_program_is_unchanged(small: Program) -> None:
    before, meta = str(small), [id(node.meta.get("val")) for node in small.graph.nodes]
    lower(small)
    assert str(small) == before
    assert [id(node.meta.get("val")) for node in small.graph.nodes] == meta


def test_training_mode_is_refused() -> None:
    program = capture(Small().eval(), torch.randn(2, 3, 8, 8)).train()
    with pytest.raises(LoweringError, match="training"):
        lower(program)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x, x + 1),
        lambda x: (x + 1,) * 2,
        lambda x: [y := torch.relu(x), y + 1, y],
        lambda x: {"a": x.sum(1), "b": x.argmax(-1), "c": x > 0},
        lambda x: x.reshape(x.shape[0] * 4, -1),
        lambda x: torch.cat([x, x], 0),
    ],
    ids=["input returned", "output twice", "output read inside", "types", "merged batch", "doubled batch"],
)
def test_unusual_outputs(function: Callable[..., object]) -> None:
    program = capture(Function(function).eval(), torch.randn(2, 4, 6))
    model = lower(program)
    assert list(dims(model)) == [*program.signature.inputs, *program.signature.outputs]
    x = torch.randn(3, 4, 6)
    names = [value.name for value in model.graph.input]
    results = run(open_session(model), to_feeds(names, [x]))
    for expected, result in zip(run_flat(program, [x]), results.values(), strict=True):
        assert str(result.dtype) == str(expected.dtype).removeprefix("torch.")
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_dimension_computed_from_the_batch_is_named_by_it() -> None:
    program = capture(Function(lambda x: torch.cat([x, x], 0)).eval(), torch.randn(2, 4))
    assert dims(lower(program))["output"] == ["2*batch", 4]


def test_an_operator_without_an_onnx_form_names_the_users_line() -> None:
    program = capture(Function(lambda x: torch.linalg.qr(x)[0]).eval(), torch.randn(2, 4, 4))
    with pytest.raises(LoweringError, match="linalg_qr") as caught:
        lower(program)
    assert caught.value.node is not None
    assert "linalg_qr" in caught.value.node
    assert caught.value.source is not None
    assert "test_lower.py" in caught.value.source


def test_a_batch_that_is_not_dynamic_in_the_file_is_caught(small: Program, lowered: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(lowered)
    reshape = next(node for node in broken.graph.node if node.op_type == "Reshape")
    broken.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 8, 36]), "fixed"))
    reshape.input[1] = "fixed"
    with pytest.raises(LoweringError, match="not usable"):
        accept(broken, small)


def test_a_wrongly_declared_output_is_caught(small: Program, lowered: onnx.ModelProto) -> None:
    session = open_session(lowered)
    feeds = acceptance.example_feeds(small, ["x"])[0]
    results = run(session, feeds)
    results["logits"] = results["logits"][:, :4]
    with pytest.raises(InputError, match="declared"):
        acceptance._check_shapes(session, feeds, results)


def test_an_invalid_graph_is_caught(small: Program, lowered: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(lowered)
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(LoweringError, match="not usable"):
        accept(broken, small)


def test_lowering_says_nothing(small: Program, capfd: pytest.CaptureFixture[str]) -> None:
    lower(small)
    captured_text = capfd.readouterr()
    assert captured_text.out == ""
    assert captured_text.err == ""


def test_sequence_and_batch_are_both_dynamic() -> None:
    program = captured("hf_bert")
    model = lower(program)
    assert dims(model)["input_ids"] == ["batch", "sequence"]
    inputs = [tensor[:1].repeat(3, 2)[:, :11] for tensor in program.flat_example()]
    assert_computes(program, model, *inputs)
    assert not any(node.op_type == "If" for node in model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer}
    assert "bert.encoder.layer.0.attention.self.query.weight" in weights


class Masked(nn.Module):
    """Attention with a boolean mask."""

    def forward(self, q: Tensor, allowed: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=allowed)


def test_a_padded_position_that_sees_nothing_gives_zeros_as_in_torch() -> None:
    q, allowed = torch.randn(2, 2, 3, 4), torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    allowed[0, 0, 1] = False
    program = capture(Masked().eval(), (q, allowed))
    assert program(q, allowed)[0, 0, 1].abs().max() == 0
    assert_computes(program, lower(program), q, allowed)


def test_rewrites_are_all_listed() -> None:
    assert len({rewrite.__name__ for rewrite in lowering.REWRITES}) == len(lowering.REWRITES) == 12


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_type_without_kernels_is_named_with_what_to_do(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().to(dtype)
    program = capture(model, torch.randn(2, 3, 8, 8, dtype=dtype))
    with pytest.raises(LoweringError, match="not usable") as caught:
        lower(program)
    assert caught.value.hint is not None
    assert "model.float()" in caught.value.hint

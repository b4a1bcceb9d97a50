"""Files for TensorRT and for any runtime stand as their rules say; each rule sees the file that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import InputError, NotSupported, ProofError
from fxcompress.lowering.lower import lower
from fxcompress.ops.quantization import Kind
from fxcompress.proof.structure import RULES, check_structure, structural_faults
from fxcompress.targets.onnxruntime import onnxruntime
from fxcompress.targets.portable import portable
from fxcompress.targets.target import Kernel, Scheme, Target
from fxcompress.targets.tensorrt import tensorrt
from tests.passes.models import Apply
from tests.plan.quantized import quantized
from tests.targets.forms import FORMS, KIND_FORMS, Form, conv


class Residual(nn.Module):
    """A stem, a block with a skip connection, a transposed convolution, a head on pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3), conv(), conv()
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Linear(8 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.head(torch.relu(self.up(x)).flatten(1))


def file_for(target: Target) -> onnx.ModelProto:
    _, _, after = quantized(Residual(), (torch.randn(2, 3, 8, 8),), target=target)
    return lower(after)


@pytest.fixture(scope="module")
def tensorrt_file() -> onnx.ModelProto:
    return file_for(tensorrt())


@pytest.fixture(scope="module")
def portable_file() -> onnx.ModelProto:
    return file_for(portable())


DEFAULT = set(KIND_FORMS.values()) - {"silu", "leaky_relu", "pad_channels"} | {"tokens"}


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, id=form.name, marks=() if form.name in DEFAULT else pytest.mark.slow)
        for form in FORMS
    ],
)
@pytest.mark.parametrize("describe", [tensorrt, portable], ids=lambda describe: describe.__name__)
def test_every_form_stands_as_the_rules_say(form: Form, describe: Callable[[], Target]):
    target = describe()
    _, plan, after = quantized(form.build(), (torch.randn(form.shape),), target=target)
    assert plan.kernels
    quantizes = [node for node in after.graph.nodes if ".quantize_per" in str(node.target)]
    assert check_structure(lower(after), target) == len(quantizes)


def test_tensorrt_gets_symmetric_activations_and_float_biases(tensorrt_file: onnx.ModelProto):
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensorrt_file.graph.initializer}
    quantizes = [node for node in tensorrt_file.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizes) == 5
    for node in quantizes:
        zero = stored[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    weights = {name: array for name, array in stored.items() if array.dtype == np.int8 and array.ndim > 1}
    assert len(weights) == 5
    assert not any(array.dtype == np.int32 for array in stored.values())


def test_only_the_branch_that_is_not_fused_is_quantized(tensorrt_file: onnx.ModelProto):
    maker = {name: node for node in tensorrt_file.graph.node for name in node.output}
    (addition,) = (node for node in tensorrt_file.graph.node if node.op_type == "Add")
    assert sorted(maker[name].op_type for name in addition.input) == ["Conv", "DequantizeLinear"]


def test_portable_files_hold_nothing_but_onnx(portable_file: onnx.ModelProto):
    assert {node.domain for node in portable_file.graph.node} <= {""}
    assert [item.domain for item in portable_file.opset_import] == [""]


# --- each rule, broken -------------------------------------------------------------------------------------


def first(model: onnx.ModelProto, kind: str, skip: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == kind][skip]


def store(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def stored_pair(model: onnx.ModelProto, operand: int) -> onnx.NodeProto:
    """The DQ of the weight (1) or bias (2) of the first convolution."""
    name = first(model, "Conv").input[operand]
    return next(node for node in model.graph.node if name in node.output)


def zero_point(model: onnx.ModelProto) -> None:
    first(model, "QuantizeLinear").input[2] = store(model, "z", np.array(3, np.int8))


def unsigned(model: onnx.ModelProto) -> None:
    first(model, "QuantizeLinear").input[2] = store(model, "z", np.array(0, np.uint8))


def scale_per_channel(model: onnx.ModelProto) -> None:
    first(model, "QuantizeLinear").input[1] = store(model, "s", np.full(3, 0.1, np.float32))


def negative_scale(model: onnx.ModelProto) -> None:
    first(model, "QuantizeLinear").input[1] = store(model, "s", np.array(-0.1, np.float32))


def weight_per_tensor(model: onnx.ModelProto) -> None:
    stored_pair(model, 1).input[1] = store(model, "s", np.array(0.1, np.float32))


def weight_along_inputs(model: onnx.ModelProto) -> None:
    pair = stored_pair(model, 1)
    del pair.attribute[:]
    pair.attribute.append(helper.make_attribute("axis", 1))


def weight_zero_point(model: onnx.ModelProto) -> None:
    stored_pair(model, 1).input[2] = store(model, "z", np.ones(16, np.int8))


def weight_quantized_in_the_file(model: onnx.ModelProto) -> None:
    name = store(model, "w", np.ones((16, 3, 3, 3), np.float32))
    scale, zero = store(model, "s", np.array(0.1, np.float32)), store(model, "z", np.array(0, np.int8))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", [name, scale, zero], ["wq"]))


def integer_bias(model: onnx.ModelProto) -> None:
    name = store(model, "b", np.zeros(16, np.int32))
    scale = store(model, "bs", np.full(16, 0.1, np.float32))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", [name, scale], ["b_dq"], axis=0))
    first(model, "Conv").input[2] = "b_dq"


def pair_after_pair(model: onnx.ModelProto) -> None:
    quantize, pair = first(model, "QuantizeLinear", 1), first(model, "DequantizeLinear")
    pair = next(node for node in model.graph.node if quantize.output[0] in node.input)
    again = helper.make_node("QuantizeLinear", [pair.output[0], *quantize.input[1:]], ["again"])
    model.graph.node.extend(
        [again, helper.make_node("DequantizeLinear", ["again", *pair.input[1:]], ["twice"])]
    )


def float_input(model: onnx.ModelProto) -> None:
    first(model, "Conv").input[0] = model.graph.input[0].name


def both_branches(model: onnx.ModelProto) -> None:
    addition, quantize = first(model, "Add"), first(model, "QuantizeLinear")
    place = next(i for i, name in enumerate(addition.input) if name == first(model, "Conv", 2).output[0])
    nodes = [
        helper.make_node("QuantizeLinear", [addition.input[place], *quantize.input[1:]], ["branch"]),
        helper.make_node("DequantizeLinear", ["branch", *quantize.input[1:]], ["branch_dq"]),
    ]
    model.graph.node.extend(nodes)
    addition.input[place] = "branch_dq"


def neither_branch(model: onnx.ModelProto) -> None:
    addition = first(model, "Add")
    maker = {name: node for node in model.graph.node for name in node.output}
    place = next(i for i, name in enumerate(addition.input) if maker[name].op_type == "DequantizeLinear")
    addition.input[place] = maker[maker[addition.input[place]].input[0]].input[0]


def integers_read_directly(model: onnx.ModelProto) -> None:
    quantize = first(model, "QuantizeLinear")
    model.graph.node.append(
        helper.make_node("Cast", [quantize.output[0]], ["cast"], to=onnx.TensorProto.FLOAT)
    )


def other_domain(model: onnx.ModelProto) -> None:
    first(model, "Relu").domain = "com.microsoft"


def computed_scale(model: onnx.ModelProto) -> None:
    quantize = first(model, "QuantizeLinear")
    model.graph.node.insert(0, helper.make_node("Abs", [quantize.input[1]], ["abs"]))
    quantize.input[1] = "abs"


def transposed_axis(model: onnx.ModelProto) -> None:
    name = first(model, "ConvTranspose").input[1]
    pair = next(node for node in model.graph.node if name in node.output)
    pair.input[1] = store(model, "s", np.full(16, 0.1, np.float32))


BROKEN = {
    zero_point: "zero point 3",
    unsigned: "makes uint8, not int8",
    scale_per_channel: "3 scales: activations have one",
    negative_scale: "not a positive number",
    computed_scale: "is computed, not stored",
    weight_per_tensor: "does not have one scale per output channel",
    weight_along_inputs: "does not have one scale per output channel",
    transposed_axis: "does not have one scale per output channel",
    weight_zero_point: "a zero point that is not 0",
    weight_quantized_in_the_file: "quantizes a stored tensor",
    integer_bias: "the bias of Conv",
    pair_after_pair: "dequantized right before it",
    float_input: "its input is not quantized",
    both_branches: "both branches of Add",
    neither_branch: "no branch of Add",
    integers_read_directly: "reads the integers of",
    other_domain: "of the domain com.microsoft",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_a_broken_file_is_seen(damage: Callable[[onnx.ModelProto], None], tensorrt_file: onnx.ModelProto):
    broken = onnx.ModelProto()
    broken.CopyFrom(tensorrt_file)
    damage(broken)
    assert structural_faults(tensorrt_file, tensorrt()) == ()
    assert any(BROKEN[damage] in fault for fault in structural_faults(broken, tensorrt()))
    with pytest.raises(ProofError, match="the file is not what tensorrt reads"):
        check_structure(broken, tensorrt())


def test_a_file_for_one_target_is_not_one_for_another(
    tensorrt_file: onnx.ModelProto, portable_file: onnx.ModelProto
):
    assert any("hands out floats" in fault for fault in structural_faults(tensorrt_file, portable()))
    faults = structural_faults(portable_file, tensorrt())
    assert any("makes uint8" in fault for fault in faults)
    assert any("the bias of" in fault for fault in faults)


def test_concatenations_share_a_scale_where_the_target_asks_for_it():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.e(torch.cat([m.c(x), 9.0 * m.d(x)], 1))

    model = Apply(forward, c=conv(), d=conv(), e=conv(32))
    example = (torch.randn(2, 16, 6, 6),)
    _, plan, after = quantized(model, example, target=portable())
    assert plan.activations["cat"].scale == plan.activations["conv2d"].scale
    assert plan.activations["conv2d"].shares == "cat"
    file = lower(after)
    assert structural_faults(file, portable()) == ()
    quantize = next(node for node in file.graph.node if node.op_type == "Concat")
    pair = next(node for node in file.graph.node if quantize.input[0] in node.output)
    pair.input[1] = store(file, "s", np.array(7.0, np.float32))
    assert any("joins 2 different scales" in fault for fault in structural_faults(file, portable()))


def test_every_rule_is_broken_by_some_file():
    """`operands` is broken in tests/plan/test_operand_schemes.py."""
    assert {rule.__name__ for rule in RULES} == {
        *(
            "domains",
            "activations",
            "operands",
            "chains",
            "weights",
            "biases",
            "outputs",
            "additions",
            "shared",
        )
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activations": Scheme("int8", per_channel=True)}, "one scale per tensor"),
        ({"activations": Scheme("uint8", symmetric=True)}, "symmetric activations are int8"),
        ({"weights": Scheme("uint8")}, "weights are symmetric int8"),
        ({"shared_scales": frozenset({Kind.ADD})}, "one scale cannot cover"),
    ],
)
def test_a_description_that_cannot_be_is_refused(fields: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        Target("mine", 8, {}, Kernel("MatMul"), **fields)


def test_a_mode_that_the_runtime_does_not_read_is_refused_before_any_work():
    with pytest.raises(NotSupported, match="tensorrt cannot run the mode 'int8-dynamic'"):
        fxcompress.optimize(nn.Linear(4, 4), torch.randn(2, 4), quantize="int8-dynamic", target="tensorrt")


def test_wide_layers_have_stored_zero_points() -> None:
    """Above 64 KiB of them the exporter leaves a Cast behind, and no rule looks through it."""
    example = (torch.randn(2, 16),)
    for target in (tensorrt(), onnxruntime()):
        _, plan, after = quantized(nn.Sequential(nn.Linear(16, 9000)), example, target=target)
        model = lower(after)
        stored = {tensor.name for tensor in model.graph.initializer}
        pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert pairs
        assert all(name in stored for node in pairs for name in node.input[1:])
        assert plan.kernels

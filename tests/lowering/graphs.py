"""Small ONNX graphs written as text, for before/after tests of rewrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fxcompress.runtime.session import open_session, run
from tests.lowering.doubles import assert_equal_in_double

Arrays = Mapping[str, NDArray[Any]]


def model_of(text: str, tensors: Arrays | None = None, opset: int = 20) -> onnx.ModelProto:
    """A checked model from its text and its stored tensors, with shapes inferred."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{dedent(text)}')
    for name, values in (tensors or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def listing(model: onnx.ModelProto) -> str:
    """The nodes of a model, one per line, `output = Operator<attributes>(inputs)`."""
    lines = []
    for node in model.graph.node:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        shown = ", ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
        head = f"{node.op_type}<{shown}>" if shown else node.op_type
        lines.append(f"{', '.join(node.output)} = {head}({', '.join(node.input)})")
    return "\n".join(lines)


def apply(rewrite: Callable[[Any], int], model: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    """What a rewrite says it changed, and the model after it and the removal of unread nodes."""
    graph = gs.import_onnx(model)
    changed = rewrite(graph)
    if changed:
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
    after = gs.export_onnx(graph, ir_version=model.ir_version)
    onnx.checker.check_model(after, full_check=True)
    return changed, after


def assert_rewrites(
    rewrite: Callable[[Any], int],
    model: onnx.ModelProto,
    after: str,
    feeds: Arrays,
    *,
    exact: bool = True,
) -> onnx.ModelProto:
    """The rewrite changes something, leaves the nodes `after`, and computes what was computed before.

    To the last bit in single precision; where that is not `exact`, to twelve digits in double precision.
    """
    expected = run(open_session(model, optimize=False), feeds)
    changed, rewritten = apply(rewrite, model)
    assert listing(rewritten) == dedent(after).strip()
    assert changed
    results = run(open_session(rewritten, optimize=False), feeds)
    assert list(results) == list(expected)
    for name, value in expected.items():
        assert results[name].dtype == value.dtype
        if exact:
            np.testing.assert_array_equal(results[name], value)
        else:
            np.testing.assert_allclose(results[name], value, rtol=1e-5, atol=1e-6)
    if not exact:
        assert_equal_in_double(model, rewritten, feeds)
    return rewritten


def assert_declines(rewrite: Callable[[Any], int], model: onnx.ModelProto) -> None:
    """The rewrite changes nothing: the nodes before are the nodes after."""
    changed, after = apply(rewrite, model)
    assert not changed
    assert listing(after) == listing(model)


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_ints(*shape: int, seed: int = 0) -> NDArray[np.int8]:
    """Quantized weights."""
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)

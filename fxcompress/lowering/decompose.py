"""Operators the exporter cannot translate, taken apart in place.

`torch.onnx.export` has the whole program traced again to decompose the few operators it has no ONNX form for
(of the 50 that our test networks use: batch_norm, adaptive_avg_pool2d, conv_transpose2d, diff, `&` and
casts). That costs half of the export's time and gives most nodes new names. Here only those operators are
traced, one at a time, on the fake values of their inputs, and what they decompose to takes their place; every
other node stays, name included. Before that, operators whose ONNX form is wrong are written in others
(`operator_forms`).
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.onnx._internal.exporter._decomp import get_onnx_implemented_overloads
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fxcompress.lowering.operator_forms import form_of
from fxcompress.lowering.runtime_operators import register
from fxcompress.ops.arguments import arguments

ORIGIN = "fxcompress_origin"
"""Metadata of a decomposed node: the name of the node it is a part of."""

EXPORTED = 18
"""The oldest opset that torch's exporter writes itself."""

Table = Mapping[Any, Callable[..., Any]]


class LocalProgram(ExportedProgram):
    """An exported program that decomposes only what needs it, where it stands.

    Falls back to torch's own whole trace for an operator whose parts need tensors of their own or have no
    ONNX form either; that trace records origins in `meta["from_node"]`, `stuck` has the names of the
    operators with such parts, and `origins` of which node the parts are that were there before the trace.
    """

    stuck: tuple[str, ...] = ()
    origins: Mapping[str, str] = {}

    def run_decompositions(
        self, decomp_table: Table | None = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        """Decompose in place and return the program itself, or a new one from the whole trace."""
        if decomp_table is None:
            return super().run_decompositions(None, decompose_custom_triton_ops)
        graph = self.graph_module.graph
        apply_forms(graph)
        self.stuck = decompose(graph, decomp_table, translatable())
        if self.stuck:
            self.origins = {node.name: node.meta[ORIGIN] for node in graph.nodes if ORIGIN in node.meta}
            _let_views_copy(graph)
            self.graph_module.recompile()
            return super().run_decompositions(dict(decomp_table), decompose_custom_triton_ops)
        self.graph_module.recompile()
        results = graph.output_node().args[0]
        for spec, result in zip(self.graph_signature.output_specs, results, strict=True):
            spec.arg = TensorArgument(result.name)
        return self


@cache
def registry(opset: int) -> ONNXRegistry:
    """The exporter's table of operators for an opset, with ours; read, never written."""
    table = ONNXRegistry.from_torchlib(opset)
    register(table)
    return table


@cache
def translatable() -> frozenset[Any]:
    """The operators that torch's exporter has an ONNX form for, in every opset we write."""
    return frozenset(get_onnx_implemented_overloads(registry(EXPORTED)))


def apply_forms(graph: fx.Graph) -> None:
    """Write every operator that has a form of ours in other operators, in place.

    Raises:
        LoweringError: an operator whose form does not cover this use.
    """
    for node in list(graph.nodes):
        form = form_of(node)
        if form is not None:
            _splice(graph, node, _trace(node, partial(form, node), arguments(node)))


def _let_views_copy(graph: fx.Graph) -> None:
    """Write `view` as `reshape`: an attention that is taken apart has other strides than the fused one."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default


def decompose(graph: fx.Graph, table: Table, known: Collection[Any]) -> tuple[str, ...]:
    """Replace every operator that is not `known` by its parts, in place.

    Returns the names of the operators for which that is impossible; if there are any, nothing is changed.
    Every node must have its `meta["val"]`, with fake tensors of one mode.
    """
    traced: list[tuple[fx.Node, fx.Graph]] = []
    stuck: list[str] = []
    for node in graph.nodes:
        if _is_unknown(node, known):
            parts = _decomposed(node, table)
            if not _can_splice(node, parts, known):
                stuck.append(node.name)
            traced.append((node, parts))
    if stuck:
        return tuple(stuck)
    for node, parts in traced:
        _splice(graph, node, parts)
    graph.eliminate_dead_code()
    return ()


def _is_unknown(node: fx.Node, known: Collection[Any]) -> bool:
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target not in known
    )


def _decomposed(node: fx.Node, table: Table) -> fx.Graph:
    """The graph of one operator, decomposed."""

    def call(given: tuple[Any, Any]) -> Any:
        args, kwargs = given
        return node.target(*args, **kwargs)  # type: ignore[operator]

    return _trace(node, call, (node.args, node.kwargs), table)


def _trace(node: fx.Node, function: Callable[[Any], Any], given: Any, table: Table | None = None) -> fx.Graph:
    """The graph of a function of a node's arguments, with the node's inputs as placeholders in order."""
    inputs = node.all_input_nodes

    def call(*values: Any) -> Any:
        return function(fx.map_arg(given, dict(zip(inputs, values, strict=True)).__getitem__))

    # Within the mode that made the values: constants that a decomposition makes must be fake like them.
    with torch.no_grad(), _fake_mode(inputs):
        module = make_fx(functionalize(call), decomposition_table=dict(table or {}))(
            *[one.meta["val"] for one in inputs]
        )
    return module.graph


def _fake_mode(nodes: Sequence[fx.Node]) -> contextlib.AbstractContextManager[Any]:
    """The mode of the nodes' fake tensors; none for nodes that hold no tensor."""
    tensors = [node.meta["val"] for node in nodes if isinstance(node.meta["val"], torch.Tensor)]
    return detect_fake_mode(tensors) or contextlib.nullcontext()


def _can_splice(node: fx.Node, parts: fx.Graph, known: Collection[Any]) -> bool:
    for part in parts.nodes:
        if part.op == "get_attr":
            return False
        if _is_unknown(part, known):
            return False
    several = isinstance(parts.output_node().args[0], tuple | list)
    return not several or all(user.target is operator.getitem for user in node.users)


def _splice(graph: fx.Graph, node: fx.Node, parts: fx.Graph) -> None:
    """Put a traced operator in the place of `node`."""
    placed: dict[fx.Node, Any] = {}
    inputs = iter(node.all_input_nodes)
    with graph.inserting_before(node):
        for part in parts.nodes:
            if part.op == "placeholder":
                placed[part] = next(inputs)
            elif part.op == "call_function":
                placed[part] = graph.node_copy(part, placed.__getitem__)
                _inherit(placed[part], node)
    results: Any = fx.map_arg(parts.output_node().args[0], placed.__getitem__)
    if isinstance(results, tuple | list):
        for user in list(node.users):
            position: Any = user.args[1]
            _replace(graph, user, results[position])
        graph.erase_node(node)
    else:
        _replace(graph, node, results)


def _replace(graph: fx.Graph, node: fx.Node, result: fx.Node) -> None:
    """Let the readers of `node` read `result`, which from now on is what `node` was."""
    node.replace_all_uses_with(result)
    if ORIGIN in result.meta:
        result.meta[ORIGIN] = node.name
    graph.erase_node(node)


def _inherit(part: fx.Node, node: fx.Node) -> None:
    part.meta[ORIGIN] = node.name
    for key in ("nn_module_stack", "stack_trace"):
        if key in node.meta:
            part.meta[key] = node.meta[key]

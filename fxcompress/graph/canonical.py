"""From an exported graph to the canonical form that `well_formed` checks.

exported program => wrappers inlined, checks dropped, one get_attr per tensor, plain outputs, functional form,
constants folded.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph import edit, walk
from fxcompress.graph.folding import fold_constants
from fxcompress.graph.functional import functionalize, mutates
from fxcompress.graph.module import named_tensors, same_tensor, used_names
from fxcompress.graph.operators import NAMESPACES
from fxcompress.graph.precision import converted
from fxcompress.graph.program import Example, Program, Signature
from fxcompress.graph.structure import output_names, plain, prune
from fxcompress.graph.wrappers import inline_wrappers

aten = torch.ops.aten

CHECKS = frozenset(
    {
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
        "_assert",
    }
)
"""Operators that only check; what they check holds for the shapes the program accepts."""
KEPT_METADATA = ("val", "stack_trace", "nn_module_stack")


def canonical(
    exported: ExportedProgram, example: Example, dynamic: Sequence[dict[int, str]], notes: list[str]
) -> Program:
    """The canonical program of an exported one.

    Args:
        exported: from `torch.export`, training or inference dialect.
        example: inputs in the structure of the call; leaves that are not tensors are fixed into the graph.
        dynamic: symbol of each dynamic dimension, per leaf of the example.
        notes: what a reader must know about the capture so far.
    """
    module = exported.module(check_guards=False)
    graph = module.graph
    inline_wrappers(module)
    _refuse_observers(graph)
    _drop_checks(graph)
    _trim_metadata(graph)
    tensors, lifted = _tensors(module, exported)
    _tensors_first(graph)
    _one_node_per_tensor(graph, tensors)
    signature, example, kept = _signature(graph, _out_spec(module), example, dynamic)
    program = Program.build(graph, tensors, signature, example)
    program.notes.extend([*notes, *kept])
    written = any(mutates(node) for node in graph.nodes)
    program.notes.extend(functionalize(program))
    _forget_strides(graph)
    folded = fold_constants(program, lifted)
    edit.tidy(program)
    _refuse_foreign(graph)
    if written or folded:
        edit.reinfer(program)
    return program


def _refuse_foreign(graph: fx.Graph) -> None:
    """Raise CaptureError for an operator of another library: nothing says what it computes."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in NAMESPACES:
            raise CaptureError(
                f"{node.target} is an operator of the library {node.target.namespace!r}, not of PyTorch",
                hint="choose the variant of this layer that is written in PyTorch's own operators; the "
                'experts of `transformers` have one: `model.set_experts_implementation("batched_mm")`',
                node=node.format_node(),
                source=walk.source(node),
            )


_OBSERVERS = (
    aten.fused_moving_avg_obs_fake_quant.default,
    aten._fused_moving_avg_obs_fq_helper.default,
)


def _refuse_observers(graph: fx.Graph) -> None:
    """Raise CaptureError for fake quantization that was exported with its observer, which moves its scale."""
    for node in graph.nodes:
        if node.target in _OBSERVERS:
            raise CaptureError(
                f"the graph was exported with observers in it: {node.name} may change its own scale",
                hint="pass the prepared module itself instead of what torch.export makes of it, or, of a "
                "model of pt2e, what convert_pt2e returns",
                node=node.format_node(),
                source=walk.source(node),
            )


def _drop_checks(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        packet = getattr(node.target, "overloadpacket", None)
        name = getattr(packet, "__name__", getattr(node.target, "__name__", ""))
        checks = node.op == "call_function" and name in CHECKS
        if (checks or node.op == "call_module") and not node.users:
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and node.target in _SIZES:
            graph.erase_node(node)


_SIZES = frozenset(
    {
        operator.eq,
        operator.ge,
        operator.le,
        operator.gt,
        operator.lt,
        operator.ne,
        operator.mod,
        aten.sym_size.int,
    }
)


def _forget_strides(graph: fx.Graph) -> None:
    """view(x, size) => reshape(x, size): a view refuses strides that passes may bring about."""
    for node in graph.nodes:
        if node.target in _STRIDED:
            target, name = _STRIDED[node.target]
            size = node.kwargs[name] if name in node.kwargs else node.args[1]
            node.target, node.args, node.kwargs = target, (node.args[0], size), {}


_STRIDED = {
    aten.view.default: (aten.reshape.default, "size"),
    aten._unsafe_view.default: (aten.reshape.default, "size"),
    aten.view_as.default: (aten.reshape_as.default, "other"),
}


def _trim_metadata(graph: fx.Graph) -> None:
    """Keep what errors and listings need, as plain data."""
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in KEPT_METADATA if key in node.meta}
        stack = node.meta.pop("nn_module_stack", None) or {}
        plain_stack = {
            str(key): (str(entry[0]), _type_name(entry[1]))
            for key, entry in stack.items()
            if isinstance(entry, tuple) and not str(key).startswith("_empty")
        }
        if plain_stack:
            node.meta["nn_module_stack"] = plain_stack


def _type_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _tensors(
    module: fx.GraphModule, exported: ExportedProgram
) -> tuple[dict[str, torch.Tensor], frozenset[str]]:
    """New tensors for all names, and those that are constants of the model, no parameters or buffers."""
    signature = exported.graph_signature
    lifted = {str(name) for name in signature.inputs_to_lifted_tensor_constants.values()}
    tensors = dict(named_tensors(module))
    for name in used_names(module.graph.nodes) - set(tensors):
        tensors[name] = walk.attribute(module, name)
        lifted.add(name)
    return converted(tensors, None), frozenset(lifted)


def _one_node_per_tensor(graph: fx.Graph, tensors: dict[str, torch.Tensor]) -> None:
    """Tied names share the node of their first name; get_attr nodes nobody reads go."""
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        first.setdefault(_identity(name, tensor), name)
    reads = [node for node in graph.nodes if node.op == "get_attr"]
    nodes = {str(node.target): node for node in reversed(reads)}
    for node in reads:
        name = first[_identity(str(node.target), tensors[str(node.target)])]
        kept = nodes.setdefault(name, node)
        kept.target = name
        if kept is not node:
            node.replace_all_uses_with(kept)
    for node in reads:
        if not node.users:
            graph.erase_node(node)


def _identity(name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    return same_tensor(tensor) if tensor.numel() else (name,)


def _tensors_first(graph: fx.Graph) -> None:
    """Placeholders, then get_attr nodes, then the rest, each in its order."""
    nodes = list(graph.nodes)
    ranked = [n for n in nodes if n.op == "placeholder"] + [n for n in nodes if n.op == "get_attr"]
    anchor = graph._root
    for node in ranked:
        anchor.append(node)
        anchor = node


def _signature(
    graph: fx.Graph, out_spec: pytree.TreeSpec, example: Example, dynamic: Sequence[dict[int, str]]
) -> tuple[Signature, Example, list[str]]:
    """The signature without fixed arguments and constant results; the example that fits it; notes."""
    notes: list[str] = []
    leaves, in_spec = pytree.tree_flatten((example.args, example.kwargs))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != len(leaves):
        raise CaptureError(f"the exported graph takes {len(inputs)} inputs, the example has {len(leaves)}")
    for node, leaf in zip(inputs, leaves, strict=True):
        if not isinstance(leaf, torch.Tensor):
            notes.append(f"the argument {node.name} is fixed at {leaf!r}")
            graph.erase_node(node)
    keep = [isinstance(leaf, torch.Tensor) for leaf in leaves]
    in_spec = _required(prune(in_spec, keep))
    args, kwargs = pytree.tree_unflatten(
        [leaf for leaf, kept in zip(leaves, keep, strict=True) if kept], in_spec
    )
    output = graph.output_node()
    results = list(pytree.tree_leaves(output.args[0]))
    for result in results:
        _check_result(result)
    tensors = [isinstance(result, fx.Node) for result in results]
    if not all(tensors):
        notes.append("results that are constants (None, numbers) are left out")
    out_spec = _required(prune(plain(out_spec), tensors))
    output.args = (tuple(result for result in results if isinstance(result, fx.Node)),)
    names = tuple(node.name for node, kept in zip(inputs, keep, strict=True) if kept)
    symbols = {
        node.name: dict(dims) for node, dims, kept in zip(inputs, dynamic, keep, strict=True) if kept and dims
    }
    signature = Signature(names, output_names(out_spec), symbols, in_spec, out_spec)
    return signature, Example(args, kwargs), notes


def _out_spec(module: fx.GraphModule) -> pytree.TreeSpec:
    spec = module._out_spec
    if spec is None:
        raise CaptureError("the exported program has no output structure")
    return spec


def _check_result(result: Any) -> None:
    if isinstance(result, fx.Node) and not walk.is_tensor(result) and result.op != "get_attr":
        raise CaptureError(
            "the model returns a size, not a tensor",
            node=result.format_node(),
            source=walk.source(result),
            hint="return tensors only",
        )


def _required(spec: pytree.TreeSpec | None) -> pytree.TreeSpec:
    if spec is None or not spec.num_leaves:
        raise CaptureError("the model takes or returns no tensor", hint="pass tensors and return tensors")
    return spec

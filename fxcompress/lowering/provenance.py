"""Where every ONNX node came from, said in the file itself with the program's names and nothing else.

- The ONNX node that makes the value of a program node has that node's name, and so has the value.
- What else an operator was translated to is called `<program node>/<ONNX operator>`, its value likewise.
- `metadata_props` hold `fxcompress.module`, the path of the user's module, and `fxcompress.fused`, the
  program nodes that left no value of their own (a batch norm folded into its convolution, merged reshapes).

The exporter's own metadata (stack traces with absolute paths, class hierarchies, printed nodes: 80 % of the
bytes of a small file) is dropped. onnx-graphsurgeon drops `metadata_props` too, so `strip` runs before the
rewrites and `attach` after them, by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import onnx
from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.lowering.export import Exported

MODULE = "fxcompress.module"
FUSED = "fxcompress.fused"
_FX_NODE = "pkg.torch.onnx.fx_node"
_NODE_NAME = re.compile(r"%(\S+) :")
_SPLIT = re.compile(r"(.+)_split_\d+$")


def rename(exported: Exported, program: Program) -> None:
    """Give the nodes and values of the exported model the program's names, in place."""
    graph = exported.model.graph
    owners = _owners(graph, exported.origins)
    names = _value_names(graph, exported, program)
    taken = {tensor.name for tensor in graph.initializer} | set(program.signature.inputs)
    taken.update(names.values())
    used: set[str] = set()
    for node, owner in zip(graph.node, owners, strict=True):
        made = [names[output] for output in node.output if output in names]
        node.name = _unique(made[0] if made else f"{owner}/{node.op_type}", used)
        for output in node.output:
            if output and output not in names:
                names[output] = _unique(node.name, taken)
    _rename_values(graph, names)


def strip(model: onnx.ModelProto) -> None:
    """Remove metadata, doc strings and intermediate type annotations from a model, in place."""
    graph = model.graph
    model.ClearField("metadata_props")
    for holder in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    graph.ClearField("value_info")


def attach(model: onnx.ModelProto, program: Program) -> None:
    """Write module paths and fused nodes into the metadata of a model whose nodes are named by `rename`."""
    present = {node.name: node for node in model.graph.node}
    made = {output: node for node in model.graph.node for output in node.output}
    homes: dict[str, list[str]] = defaultdict(list)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.name not in made and node.name not in present:
            home = _absorber(node, made)
            if home is not None:
                homes[home].append(node.name)
    modules = {node.name: walk.module_path(node) for node in program.graph.nodes}
    for name, proto in present.items():
        owner = owner_of(name)
        if modules.get(owner):
            onnx.helper.set_metadata_props(proto, {MODULE: modules[owner]})
    for home, names in homes.items():
        properties = {entry.key: entry.value for entry in made[home].metadata_props}
        fused = [*filter(None, properties.get(FUSED, "").split(",")), *names]
        made[home].ClearField("metadata_props")
        onnx.helper.set_metadata_props(made[home], {**properties, FUSED: ",".join(fused)})


def owner_of(node_name: str) -> str:
    """The program node an ONNX node of ours was made for."""
    return node_name.split("/", 1)[0]


def locate(model: onnx.ModelProto) -> dict[str, str]:
    """Program node name -> name of the ONNX node that computes it, read from a file of ours.

    The reader of what `attach` writes: by it a test sees that no node of a program is lost on the way.
    """
    found: dict[str, str] = {}
    for node in model.graph.node:
        fused = next((entry.value for entry in node.metadata_props if entry.key == FUSED), "")
        for name in (owner_of(node.name), *node.output, *fused.split(",")):
            if name:
                found[name] = node.name
    for node in model.graph.node:
        found[node.name] = node.name
    return found


def values(model: onnx.ModelProto) -> dict[str, str]:
    """Program node name -> name of the value in the file that is that node's value, where there is one."""
    found = {name: name for node in model.graph.node for name in node.output if name}
    for node in model.graph.node:
        if "/" not in node.name and len(node.output) == 1:
            found[node.name] = node.output[0]
    return found


def _owners(graph: onnx.GraphProto, origins: Mapping[str, str]) -> list[str]:
    """Per ONNX node the program node it came from; nodes of the exporter's optimizer belong to what reads
    them.
    """
    owners: list[str | None] = []
    for node in graph.node:
        candidates = (_printed_name(node), *node.output)
        owners.append(next((origins[name] for name in candidates if name in origins), None))
    readers: dict[str, str] = {}
    result: list[str] = []
    for node, owner in zip(reversed(graph.node), reversed(owners), strict=True):
        known = owner or next((readers[name] for name in node.output if name in readers), node.op_type)
        readers.update(dict.fromkeys(node.input, known))
        result.append(known)
    return result[::-1]


def _printed_name(node: onnx.NodeProto) -> str:
    """The decomposed node that the exporter says an ONNX node is the translation of."""
    printed = next((entry.value for entry in node.metadata_props if entry.key == _FX_NODE), "")
    match = _NODE_NAME.match(printed)
    return match[1] if match else ""


def _value_names(graph: onnx.GraphProto, exported: Exported, program: Program) -> dict[str, str]:
    """ONNX value -> program node whose value it is."""
    results = exported.results
    makers = {name: node for node in graph.node for name in node.output}
    taken = {*program.signature.inputs, *(tensor.name for tensor in graph.initializer)}
    names = {value: origin for origin, value in results.items() if value in makers and origin not in taken}
    for node in graph.node:
        match = _SPLIT.match(node.output[0])
        if node.op_type == "Split" and match is not None:
            names.update(_parts(node, exported.origins.get(match[1], ""), names, program))
    return names


def _parts(node: onnx.NodeProto, owner: str, names: Mapping[str, str], program: Program) -> dict[str, str]:
    """Outputs of a split, by the getitem nodes of the program that pick them.

    onnxscript makes a Split of a sequence split and its reads, and calls its outputs
    `<name>_split_<position>`.
    """
    source = next((one for one in program.graph.nodes if one.name == owner), None)
    if source is None:
        return {}
    picks = {user.args[1]: user.name for user in source.users if len(user.args) == 2}
    return {
        output: picks[position]
        for position, output in enumerate(node.output)
        if position in picks and picks[position] not in names.values()
    }


def _rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _absorber(node: fx.Node, made: Mapping[str, onnx.NodeProto]) -> str | None:
    """The nearest value in the file that a vanished program node's value went into, or else came from."""
    return _nearest(node, made, forward=True) or _nearest(node, made, forward=False)


def _nearest(node: fx.Node, made: Mapping[str, onnx.NodeProto], *, forward: bool) -> str | None:
    seen, frontier = {node}, [node]
    while frontier:
        step: list[fx.Node] = []
        for one in frontier:
            neighbours: Iterable[fx.Node] = sorted(one.users) if forward else one.all_input_nodes
            for other in neighbours:
                if other.name in made:
                    return other.name
                if other not in seen:
                    seen.add(other)
                    step.append(other)
        frontier = step
    return None


def _unique(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken; it is taken afterwards."""
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    taken.add(unique)
    return unique

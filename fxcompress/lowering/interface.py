"""The names a file shows to its user: inputs, outputs and dynamic dimensions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from fxcompress.errors import InputError
from fxcompress.graph.signature import Signature

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def check_names(
    signature: Signature, input_names: Sequence[str] | None, output_names: Sequence[str] | None
) -> None:
    """Refuse names that do not fit the program.

    Raises:
        InputError: a wrong count, an empty or repeated name, or one name for an input and an output.
    """
    inputs = _checked("input", signature.inputs, input_names)
    outputs = _checked("output", signature.outputs, output_names)
    both = sorted(set(inputs) & set(outputs))
    if both:
        raise InputError(
            f"{both} name both an input and an output", hint="pass other output_names: an ONNX file needs it"
        )


def _checked(kind: str, own: Sequence[str], asked: Sequence[str] | None) -> Sequence[str]:
    if asked is None:
        return own
    if isinstance(asked, str) or len(asked) != len(own) or not all(_is_name(name) for name in asked):
        raise InputError(
            f"the program has {len(own)} {kind}(s), {list(own)}, and {kind}_names is {asked!r}",
            hint=f"pass a list of {len(own)} non-empty name(s), in that order",
        )
    if len(set(asked)) < len(asked):
        raise InputError(
            f"{kind}_names repeats a name: {list(asked)}", hint="an ONNX file needs distinct names"
        )
    return asked


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != ""


def name_interface(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Rename the model's inputs and outputs, in order and in place; what else has such a name gives way."""
    graph = model.graph
    current = [value.name for value in (*graph.input, *graph.output)]
    wanted = dict(zip(current, (*inputs, *outputs), strict=True))
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(wanted.values())
    names = dict(wanted)
    for name in sorted(set(wanted.values()) - set(wanted)):
        if name in {output for node in graph.node for output in node.output} or _stored(graph, name):
            names[name] = _free(name, taken)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def name_dimensions(model: onnx.ModelProto, symbols: Mapping[str, str]) -> None:
    """Call symbolic sizes by their names in the signature (`s77*4` becomes `batch*4`), in place."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _IDENTIFIER.sub(lambda match: symbols.get(match[0], match[0]), dim.dim_param)


def _stored(graph: onnx.GraphProto, name: str) -> bool:
    return any(tensor.name == name for tensor in graph.initializer)


def _free(name: str, taken: set[str]) -> str:
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    taken.add(f"{name}_{count}")
    return f"{name}_{count}"

"""Saving a program as a `.fxc` archive; `archive` describes the format and reads it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import fx, nn

from fxcompress.errors import NotSupported
from fxcompress.graph.atomic import write_atomically
from fxcompress.graph.codec import Frame, encode_node, encode_spec
from fxcompress.graph.module import named_tensors, tied
from fxcompress.graph.origins import Origins
from fxcompress.graph.signature import Example, Signature

FORMAT = "fxcompress program"
VERSION = 1
GRAPH_ENTRY, TENSORS_ENTRY, EXAMPLE_ENTRY = "program.json", "tensors.safetensors", "example.safetensors"
_EPOCH = (1980, 1, 1, 0, 0, 0)

STORABLE = frozenset(
    (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
    )
)  # fmt: skip
"""Element types that safetensors can hold."""


class Savable(Protocol):
    """What of a `Program` is stored."""

    @property
    def module(self) -> fx.GraphModule: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def example(self) -> Example: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def history(self) -> list[str]: ...
    @property
    def origins(self) -> Origins: ...
    def flat_example(self) -> list[torch.Tensor]: ...


def save(program: Savable, path: str | Path) -> None:
    """Write the program to `path`; the same program always makes the same bytes.

    Raises InputError where the path cannot be written and NotSupported for a graph that holds what cannot be
    stored; in both cases nothing is left behind.
    """
    records, tensors = _tensor_table(program.module)
    example = dict(zip(program.signature.inputs, program.flat_example(), strict=True))
    entries = {
        GRAPH_ENTRY: _document(program, records).encode("utf-8"),
        TENSORS_ENTRY: safetensors.torch.save(_plain(tensors)),
        EXAMPLE_ENTRY: safetensors.torch.save(_plain(example)),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    write_atomically(Path(path), buffer.getvalue())


def _document(program: Savable, records: list[dict[str, Any]]) -> str:
    """`program.json`: sections by name, one node or tensor per line."""
    frames: dict[Frame, int] = {}
    nodes = [
        encode_node(node, lambda frame: frames.setdefault(frame, len(frames)))
        for node in program.module.graph.nodes
    ]
    signature = program.signature
    sections: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "training": program.module.training,
        "inputs": list(signature.inputs),
        "outputs": list(signature.outputs),
        "dynamic": [
            [name, [[dim, s] for dim, s in dims.items()]] for name, dims in signature.dynamic.items()
        ],
        "in_spec": encode_spec(signature.in_spec),
        "out_spec": encode_spec(signature.out_spec),
        "notes": list(program.notes),
        "history": list(program.history),
        "rewrites": list(program.origins.rewrites),
        "origins": [
            [name, origin.tensor, origin.dim, list(origin.positions)]
            for name, origin in program.origins.only(
                name for name, _ in named_tensors(program.module)
            ).tensors.items()
        ],
        "tensors": records,
        "nodes": nodes,
        "frames": [list(frame) for frame in frames],
    }
    return "{\n" + ",\n".join(f"{_json(key)}: {_section(value)}" for key, value in sections.items()) + "\n}\n"


def _section(value: Any) -> str:
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return "[\n  " + ",\n  ".join(_json(item) for item in value) + "\n]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _tensor_table(module: nn.Module) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """A record per name, in the order that rebuilds the module, and each distinct tensor by first name."""
    first_names = {name: names[0] for names in tied(module).values() for name in names}
    stored: dict[str, str] = {}
    records: list[dict[str, Any]] = []
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _in_module_order(module):
        record: dict[str, Any] = {"name": name, "parameter": isinstance(tensor, nn.Parameter)}
        if isinstance(tensor, nn.Parameter):
            record["requires_grad"] = tensor.requires_grad
        owner = stored.setdefault(first_names[name], name)
        if owner != name:
            record["tied"] = owner
        else:
            tensors[name] = tensor
            if (stride := _unusual_stride(tensor)) is not None:
                record["stride"] = stride
        records.append(record)
    return records, tensors


def _in_module_order(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, child in module.named_modules(remove_duplicate=False):
        for table in (child._parameters, child._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor


def _unusual_stride(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a dense tensor that is not in row-major order, such as a channels-last weight."""
    if tensor.is_contiguous() or not torch.ops.aten.is_non_overlapping_and_dense.default(tensor):
        return None
    return list(tensor.stride())


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, contiguous and each with storage of its own, as safetensors wants them."""
    for name, tensor in tensors.items():
        if tensor.dtype not in STORABLE or tensor.layout != torch.strided:
            raise NotSupported(f"{name}: a {tensor.layout} tensor of {tensor.dtype} cannot be stored")
    return {name: _own(tensor) for name, tensor in tensors.items()}


def _own(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach().cpu().contiguous()
    whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain if whole else plain.clone()

"""torch's ONNX exporter, called quietly, with an account of which program node every ONNX node came from.

The exporter decomposes the program before it translates it (`batch_norm` becomes `_native_batch_norm...` and
a `getitem`, `add` may become `add_78`), so its names are not the program's. Each decomposed node remembers
its origin in `meta["from_node"]`; `Exported.origins` reads it back.

What is called is the core of `torch.onnx.export(program, dynamo=True)`: the public function builds its table
of operators anew each time, which is half of the time that a small program takes (0.5 of 1 s).

Quirks of torch 2.13: it warns about a missing torchvision on every call and about its own deprecated pytree
calls; it prints progress unless `verbose=False`; asked for an opset below 18 it writes 18 and says so only in
its log.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import fx
from torch.onnx._internal.exporter import _core

from fxcompress.errors import LoweringError
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.lowering.blind_rows import open_blind_rows
from fxcompress.lowering.decompose import ORIGIN, LocalProgram, registry
from fxcompress.lowering.lift import lift
from fxcompress.lowering.runtime_forms import runtime_forms


@dataclass(frozen=True)
class Exported:
    """What the exporter wrote, and where it came from.

    Attributes:
        model: the ONNX model, with the exporter's names and metadata.
        origins: name of a decomposed node -> name of the program node it came from.
        results: name of a program node -> name of the decomposed node that holds its value.
        symbols: name of a symbolic size in the model -> its name in the program's signature.
    """

    model: onnx.ModelProto
    origins: Mapping[str, str]
    results: Mapping[str, str]
    symbols: Mapping[str, str]


def export(program: Program, opset: int) -> Exported:
    """Translate a program operator by operator; opset must be one the exporter has operators for.

    Raises:
        LoweringError: an operator has no ONNX form.
    """
    lifted = lift(runtime_forms(open_blind_rows(program)))
    try:
        with _quiet():
            written = _core.export(
                lifted, registry=registry(opset), opset_version=opset, verbose=False, optimize=False
            )
            _fold(written.model)
    except torch.onnx.OnnxExporterError as error:
        raise _explain(program, lifted, error) from error
    if written.exported_program is None:
        raise LoweringError("the exporter kept no program to trace names by")
    graph = written.exported_program.graph
    origins = {
        node.name: lifted.origins.get(_origin(node), _origin(node))
        for node in graph.nodes
        if node.op == "call_function"
    }
    results = {origin: name for name, origin in origins.items()}
    return Exported(written.model_proto, origins, results, _symbols(program, graph))


def _fold(model: ir.Model) -> None:
    """Onnxscript's clean-up: shape arithmetic folded, sequences split, batch norms fused, duplicates merged.

    A transposed weight would come out under a number instead of its parameter's name; our own rewrite keeps
    the name. A weight that is stored in a short type would come out in float32; the runtime folds it at load.
    """
    optimizer.optimize_ir(model, should_fold=lambda node: False if _keeps(node) else None)


def _keeps(node: ir.Node) -> bool:
    """Whether a node that could be folded stays."""
    source = node.inputs[0] if node.inputs else None
    short = source is not None and source.is_initializer() and source.dtype in _SHORT
    return node.op_type == "Transpose" or short


_SHORT = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8, ir.DataType.UINT8)
"""Types of stored weights."""


def _origin(node: fx.Node) -> str:
    """The program node that a decomposed node came from; itself when it was not decomposed."""
    if ORIGIN in node.meta:
        return str(node.meta[ORIGIN])
    for source in node.meta.get("from_node", []):
        if source.pass_name.startswith("Interpreter_PropagateUnbackedSymInts"):  # the exporter's whole trace
            return str(source.name)
    return node.name


def _symbols(program: Program, graph: fx.Graph) -> dict[str, str]:
    """The exporter's symbols (`s77`) by their names in the signature (`batch`).

    A size that turned out to be a number is listed too; as no identifier is a number, that does nothing.
    """
    found: dict[str, str] = {}
    inputs = [node for node in graph.nodes if node.op == "placeholder"][-len(program.signature.inputs) :]
    for name, node in zip(program.signature.inputs, inputs, strict=True):
        for dim, symbol in program.signature.dynamic.get(name, {}).items():
            found[str(walk.value(node).shape[dim])] = symbol
    return found


def _explain(program: Program, lifted: LocalProgram, error: Exception) -> LoweringError:
    """The exporter's failure with the program's node and the user's line, as far as they can be told.

    An operator that could not be taken apart is to blame before one that the text happens to name: after the
    whole trace the names in the text are no longer the program's.
    """
    text = "\n".join(str(cause) for cause in _causes(error))
    culprits = [
        node
        for node in program.graph.nodes
        if node.op == "call_function" and (f"%{node.name} :" in text or f"'{node.target}'" in text)
    ]
    stuck = [node for node in program.graph.nodes if node.name in lifted.stuck]
    both = [node for node in culprits if node in stuck]
    culprit = next(iter(both or stuck or culprits), None)
    reason = str(list(_causes(error))[-1]).strip().splitlines()
    return LoweringError(
        f"torch.onnx cannot translate the program: {reason[0] if reason else type(error).__name__}",
        hint="replace the operator in the model by ones that ONNX has",
        node=culprit.format_node() if culprit is not None else None,
        source=walk.source(culprit) if culprit is not None else None,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, prints or log lines from the exporter; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

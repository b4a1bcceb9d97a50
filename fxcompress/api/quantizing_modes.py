"""The modes of quantization beside static int8: dynamic int8, weights alone, shorter floats.

Each makes the variants that are tried. The first is the one that `precision="full"` asks for; which of them
pays on the target is measured, as for static int8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import onnx
import torch

from fxcompress.api.request import Request
from fxcompress.api.variant import Batch, Variant
from fxcompress.errors import NotSupported
from fxcompress.graph import walk
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.lowering.runtime_operators import MICROSOFT
from fxcompress.passes.change_floats import TYPES, ChangeFloats, overflow
from fxcompress.passes.contract import Outcome
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.passes.quantize_weights import QuantizeWeights
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization_plan import Declined, QuantizationPlan, Quantize
from fxcompress.plan.stored_products import SMALLEST
from fxcompress.proof.halves import half_bound
from fxcompress.proof.parity import parity_at_sizes
from fxcompress.proof.products import product_bound
from fxcompress.report.report import Proof

TRIED = 4
"""Batches, beside the example, on which float16 is tried for overflow."""

ROUNDED = (
    "what enters these products is rounded to int8 in blocks inside the runtime (MatMulNBits, accuracy_level "
    "4), which was measured as faster; where two outputs are close it can change which is larger "
    '(Quantize(..., precision="full") keeps activations in float)'
)

Maker = Callable[[Request, Quantize, Program, Iterable[Any] | None, Journal], Iterator[Variant]]


def refuse_unbuilt_mode(request: Request) -> None:
    """Refuse what a mode cannot be combined with, before any work.

    Raises:
        NotSupported: the target has no operators for the mode.
    """
    options = request.quantize
    if options is not None and options.mode in _IN_BLOCKS and MICROSOFT not in request.target.domains:
        raise NotSupported(
            f"{request.target.name} has no operator for weights in blocks (MatMulNBits)",
            hint='quantize="int8-dynamic" and "int8" have, and so has target="onnxruntime"',
        )


def mode_variants(
    request: Request, deployed: Program, calibration: Iterable[Any] | None, journal: Journal
) -> tuple[Variant, ...]:
    """The variants of a mode other than static int8; none where nothing of the program gains from it.

    `calibration` is what the user passed, which may be nothing, and can be read any number of times.
    """
    options = request.quantize
    if options is None or options.mode not in _MAKERS:
        return ()
    return tuple(_MAKERS[options.mode](request, options, deployed, calibration, journal))


def _dynamic(
    request: Request,
    options: Quantize,
    deployed: Program,
    calibration: Iterable[Any] | None,  # noqa: ARG001 - ranges are found at run time
    journal: Journal,
) -> Iterator[Variant]:
    stage = QuantizeDynamically(options.exclude, _smallest(options), request.target.weight_limit)
    outcome = journal.outcome(stage, deployed)
    if outcome.changed:
        plan = _plan(request, options, outcome, "DynamicQuantizeMatMul")
        yield Variant(options.mode, outcome.program, plan, (), partial(_prove_products, deployed, outcome))


def _in_blocks(
    request: Request,
    options: Quantize,
    deployed: Program,
    calibration: Iterable[Any] | None,
    journal: Journal,
) -> Iterator[Variant]:
    bits = _IN_BLOCKS[options.mode]
    for activations, suffix, notes in (("float", "", ()), ("int8", ", rounded inputs", (ROUNDED,))):
        stage = QuantizeWeights(
            bits, options.block_size, activations, options.exclude, _smallest(options), calibration
        )
        outcome = journal.outcome(stage, deployed)
        if not outcome.changed:
            return
        plan = _plan(request, options, outcome, "MatMulNBits")
        prove = partial(_prove_products, deployed, outcome)
        yield Variant(f"{options.mode}{suffix}", outcome.program, plan, notes, prove)


def _floats(
    request: Request,
    options: Quantize,
    deployed: Program,
    calibration: Iterable[Any] | None,
    journal: Journal,
) -> Iterator[Variant]:
    """Compute in the type where the runtime can and nothing overflows; store weights in it in any case."""
    fault = _float_fault(request, options, deployed, calibration, journal)
    if fault is not None and options.precision == "full":
        raise fault
    if fault is None:
        outcome = journal.outcome(ChangeFloats(options.mode, "all"), deployed)
        prove = partial(_prove_half, deployed, outcome, TYPES[options.mode])
        yield Variant(options.mode, outcome.program, None, (), prove)
    outcome = journal.outcome(ChangeFloats(options.mode, "weights"), deployed)
    if outcome.changed:
        notes = () if fault is None else (f"nothing is computed in {options.mode}: {fault.message}",)
        yield Variant(
            f"{options.mode} weights", outcome.program, None, notes, partial(_prove_stored, outcome)
        )


def _float_fault(
    request: Request,
    options: Quantize,
    deployed: Program,
    calibration: Iterable[Any] | None,
    journal: Journal,
) -> NotSupported | None:
    """Why the program cannot be computed in a type."""
    if options.mode == "bfloat16" and request.target.runtime == "onnxruntime":
        return NotSupported(
            "onnxruntime has no bfloat16 kernels on the CPU", hint='precision="auto" stores it'
        )
    with journal.step("try-for-overflow"):
        try:
            short = ChangeFloats(options.mode, "all").run(deployed).program
        except NotSupported as error:
            return error
        node = overflow(deployed, short, _tried(deployed, calibration))
    if node is None:
        return None
    return NotSupported(
        f"{options.mode} overflows at {node.name}",
        node=node.format_node(),
        source=walk.source(node),
        hint='bfloat16 has the range of float32; precision="auto" stores weights in float16 alone',
    )


def _tried(program: Program, calibration: Iterable[Any] | None) -> Iterator[Batch]:
    yield program.flat_example()
    if calibration is not None:
        yield from islice(flat_batches(program, calibration), TRIED)


_IN_BLOCKS: Mapping[str, int] = {"int8-weights": 8, "int4-weights": 4}
_MAKERS: Mapping[str, Maker] = {
    "int8-dynamic": _dynamic,
    "int8-weights": _in_blocks,
    "int4-weights": _in_blocks,
    "float16": _floats,
    "bfloat16": _floats,
}


def _smallest(options: Quantize) -> int:
    return 0 if options.precision == "full" else SMALLEST


def _plan(request: Request, options: Quantize, outcome: Outcome, kernel: str) -> QuantizationPlan:
    """What the pass did, as a plan: the products that it changed read a dequantized weight."""
    changed = [
        node.name
        for node in outcome.program.graph.nodes
        if node.op == "call_function"
        and any("dequantize_per_channel" in str(source.target) for source in node.all_input_nodes)
    ]
    return QuantizationPlan(
        target=request.target.name,
        kernels=dict.fromkeys(changed, kernel),
        declined=tuple(Declined(item.site, item.reason, item.source) for item in outcome.declined),
        mode=options.mode,
    )


def _prove_products(
    deployed: Program, outcome: Outcome, model: onnx.ModelProto, batches: Sequence[Batch]
) -> Proof:
    found = [product_bound(deployed, outcome.program, model, inputs) for inputs in batches]
    worst = max(found, key=lambda item: item.closest)
    detail = (
        f"session against program at {worst.output!r}; the bound is half of the quantization error and twice "
        f"that of the unoptimised session; each of {worst.products} products alone, on equal inputs, is at "
        f"{worst.closest:.2g} of what rounding explains"
    )
    return Proof("product-bound", worst.error, worst.bound, detail)


def _prove_half(
    deployed: Program,
    outcome: Outcome,
    dtype: torch.dtype,
    model: onnx.ModelProto,
    batches: Sequence[Batch],
) -> Proof:
    found = [half_bound(deployed, outcome.program, model, inputs, dtype) for inputs in batches]
    worst = max(found, key=lambda item: item.error / item.bound if item.bound else 0.0)
    detail = f"session against program at {worst.output!r}; the bound is twice what the shorter floats cost"
    return Proof("half-bound", worst.error, worst.bound, detail)


def _prove_stored(outcome: Outcome, model: onnx.ModelProto, batches: Sequence[Batch]) -> Proof:  # noqa: ARG001
    found = parity_at_sizes(outcome.program, model)
    detail = f"session against program with shorter weights; 8 times the rounding of {found.output!r}"
    return Proof("float-parity", found.error, found.bound, detail)

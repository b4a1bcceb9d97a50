"""The modes of quantization beside static int8: dynamic int8, weights alone, shorter floats.

Each makes the variants that are tried. The first is the one that `precision="full"` asks for; which of them
pays on the target is measured, as for static int8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import onnx
import torch

from fxcompress.api.preparing import with_tables
from fxcompress.api.request import Request
from fxcompress.api.variant import Batch, Variant
from fxcompress.errors import NotSupported
from fxcompress.graph import walk
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.lowering.runtime_operators import MICROSOFT
from fxcompress.ops.quantization import Kind, role
from fxcompress.passes.change_floats import TYPES, ChangeFloats, overflow
from fxcompress.passes.contract import Outcome
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.passes.quantize_tables import Tabled
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

AT_LOAD = (
    "the weights are small in the file and become float32 when it is loaded: speed and memory are those of "
    "float"
)

Maker = Callable[[Request, Quantize, Program, Iterable[Any] | None, Journal], Iterator[Variant]]


_STATIC_ONLY = ("calibrator", "weight_range", "equalize", "smooth", "correct_bias", "rounding")


def refuse_unbuilt_mode(request: Request) -> None:
    """Refuse options that a mode has no use for, before any work.

    Raises:
        NotSupported: an option of static int8 with another mode, or a mode that the target does not read.
    """
    options = request.quantize
    if options is None or options.mode not in _MAKERS:
        return
    refused = request.target.refused.get(options.mode)
    if refused is not None:
        raise NotSupported(
            f"{request.target.name} cannot run the mode {options.mode!r}: {refused}",
            hint='use mode="int8" with calibration data',
        )
    plain = Quantize()
    for name in _STATIC_ONLY:
        value = getattr(options, name)
        if value and value != getattr(plain, name):
            raise NotSupported(
                f"{name}={value!r} is for static int8 and does nothing in the mode {options.mode!r}",
                hint=f'leave it out, or use mode="int8"; for {options.mode!r} there are exclude and precision'
                + (", block_size, and calibration data for GPTQ" if options.mode in _IN_BLOCKS else ""),
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
    target = request.target
    stage = QuantizeDynamically(
        options.exclude, _smallest(options), target.weight_limit, target.integer_tables
    )
    outcome = journal.outcome(stage, deployed)
    if outcome.changed:
        outcome = _tabled(request, outcome, journal)
        plan = _plan(request, options, deployed, outcome, "DynamicQuantizeMatMul")
        prove = partial(prove_products, deployed, outcome.program)
        yield Variant(options.mode, outcome.program, plan, (), prove)


def _in_blocks(
    request: Request,
    options: Quantize,
    deployed: Program,
    calibration: Iterable[Any] | None,
    journal: Journal,
) -> Iterator[Variant]:
    """In blocks that the product unpacks, with inputs in float or rounded, where the target has such a
    product; and unpacked at load, which any runtime can.
    """
    stage = QuantizeWeights(
        bits=_IN_BLOCKS[options.mode],
        block_size=options.block_size,
        exclude=options.exclude,
        smallest=_smallest(options),
        tables=request.target.integer_tables,
        calibration=calibration,
    )
    with journal.step("round-weights"):
        stage = replace(stage, rounded=stage.round(deployed))
    if not stage.rounded:
        journal.outcome(stage, deployed)  # which says why
        return
    if MICROSOFT in request.target.domains:
        for activations, suffix, notes in (("float", "", ()), ("int8", ", rounded inputs", (ROUNDED,))):
            outcome = journal.outcome(replace(stage, activations=activations), deployed)
            outcome = _tabled(request, outcome, journal)
            plan = _plan(request, options, deployed, outcome, "MatMulNBits")
            prove = partial(prove_products, deployed, outcome.program)
            yield Variant(f"{options.mode}{suffix}", outcome.program, plan, notes, prove)
    outcome = _tabled(request, journal.outcome(replace(stage, unpack="load"), deployed), journal)
    plan = _plan(request, options, deployed, outcome, "")
    name = f"{options.mode}, unpacked at load"
    yield Variant(name, outcome.program, plan, (AT_LOAD,), partial(_prove_stored, outcome))


def _floats(
    request: Request,  # noqa: ARG001 - makers share a signature
    options: Quantize,
    deployed: Program,
    calibration: Iterable[Any] | None,
    journal: Journal,
) -> Iterator[Variant]:
    """Compute in the type where the runtime can and nothing overflows; store weights in it in any case."""
    fault = _float_fault(options, deployed, calibration, journal)
    if fault is not None and options.precision == "full":
        raise fault
    if fault is None:
        outcome = journal.outcome(ChangeFloats(options.mode, "all"), deployed)
        prove = partial(_prove_half, deployed, outcome, TYPES[options.mode])
        yield Variant(options.mode, outcome.program, None, (), prove)
    outcome = journal.outcome(ChangeFloats(options.mode, "weights", exclude=options.exclude), deployed)
    if outcome.changed:
        notes = () if fault is None else (f"nothing is computed in {options.mode}: {fault.message}",)
        yield Variant(
            f"{options.mode} weights", outcome.program, None, notes, partial(_prove_stored, outcome)
        )


def _float_fault(
    options: Quantize,
    deployed: Program,
    calibration: Iterable[Any] | None,
    journal: Journal,
) -> NotSupported | None:
    """Why the program cannot be computed in a type."""
    if options.mode == "bfloat16":
        return NotSupported(
            "onnxruntime, in which every file is loaded and proven, has no bfloat16 kernels on the CPU",
            hint='precision="auto" stores it',
        )
    if options.exclude:
        return NotSupported(
            f"the whole program is computed in {options.mode}, or nothing of it: nothing can be excluded",
            hint='precision="auto" stores all other weights in it',
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


def _tabled(request: Request, outcome: Outcome, journal: Journal) -> Tabled:
    """What a mode made, with large tables in integers too."""
    made = with_tables(request, outcome.program, journal)
    changed = (*outcome.changed, *made.changed)
    return Tabled(made.program, changed, outcome.declined, made.lookups)


def _smallest(options: Quantize) -> int:
    return 0 if options.precision == "full" else SMALLEST


def _plan(
    request: Request, options: Quantize, deployed: Program, outcome: Tabled, kernel: str
) -> QuantizationPlan:
    """What the pass did, as a plan: it takes every product that it does not decline."""
    declined = {item.site for item in outcome.declined}
    products = [
        node.name
        for node in deployed.graph.nodes
        if (row := role(node)) is not None and row.kind is Kind.LINEAR and node.name not in declined
    ]
    plan = QuantizationPlan(
        target=request.target.name,
        kernels=dict.fromkeys(products, kernel),
        declined=tuple(Declined(item.site, item.reason, item.source) for item in outcome.declined),
        mode=options.mode,
    )
    return plan.with_lookups(outcome.lookups)


def prove_products(
    plain: Program, program: Program, model: onnx.ModelProto, batches: Sequence[Batch]
) -> Proof:
    """Prove products with run-time quantization or weights in blocks against the program without either."""
    found = [product_bound(plain, program, model, inputs) for inputs in batches]
    worst = max(found, key=lambda item: item.closest)
    detail = (
        f"session against program at {worst.output!r}; the bound is half of the quantization error and twice "
        f"what single roundings make of the outputs; each of {worst.products} products alone, on equal "
        f"inputs, is at {worst.closest:.2g} of what rounding explains"
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

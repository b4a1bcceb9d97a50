"""The proofs of the lowered candidates, as lines of the report."""

from __future__ import annotations

import torch

from fxcompress.api.candidates import Candidate
from fxcompress.api.compress import Compressed, leading
from fxcompress.api.quantizing_modes import prove_products
from fxcompress.api.variant import Batch, Variant
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import QUANTIZE, drop_quantizers, is_quantized
from fxcompress.proof.integer import IntegerBound, integer_bound
from fxcompress.proof.parity import parity_at_sizes
from fxcompress.proof.structure import check_structure
from fxcompress.report.report import Proof
from fxcompress.targets.target import Target

PROOF_SAMPLES = 2
"""Samples that an int8 model is proven on: operator by operator, every quantized value an output."""


def prove_float(made: Compressed, item: Candidate) -> Proof:
    """Prove a float model against the program *before* folding: folding and lowering at once.

    Raises:
        ProofError: the session is further away than rounding explains.
    """
    if is_quantized(item.program):
        return _prove_carried(item)
    return _parity(made.trainable, item, "before folding")


def prove_original(made: Compressed, item: Candidate) -> Proof:
    """Prove the original's model against the captured program; raises ProofError."""
    if is_quantized(item.program):
        return _prove_carried(item)
    return _parity(made.original, item, "as captured")


def _prove_carried(item: Candidate) -> Proof:
    """Prove a program that came with its quantization: the float program is the same without it."""
    plain, example = item.program.copy(), item.program.flat_example()
    drop_quantizers(plain)
    if _at_run_time(item.program):
        return prove_products(plain, item.program, item.model, [example])
    return _integers(integer_bound(plain, item.program, item.model, example))


def _at_run_time(program: Program) -> bool:
    """Whether all scales of activations are found at run time, for uint8 as DynamicQuantizeLinear is."""
    names = "quantized_decomposed.quantize"
    found = [node for node in program.graph.nodes if str(node.target).startswith(names)]
    return bool(found) and all(
        node.target is not QUANTIZE and walk.dtype(node) is torch.uint8 for node in found
    )


def _parity(program: Program, item: Candidate, state: str) -> Proof:
    found = parity_at_sizes(program, item.model)
    sizes = "at two sizes" if any(program.signature.dynamic.values()) else "on the example"
    detail = (
        f"session against program {state}, {sizes}; the bound is 8 times the rounding of {found.output!r}"
    )
    return Proof("float-parity", found.error, found.bound, detail)


def prove_variant(made: Compressed, item: Candidate, variant: Variant, target: Target) -> Proof:
    """Prove a quantized model against its program, as its kind of variant is; raises ProofError.

    What ONNX Runtime's integer kernels make of a file is proven where it is the target. For another one the
    file is proven as it is written, and its structure against the target's rules.
    """
    batches = made.samples or (made.original.flat_example(),)
    inputs = leading(made.original, batches[0], PROOF_SAMPLES)
    if variant.prove is not None:
        return variant.prove(item.model, [inputs])
    if target.timed:
        return _prove_integers(made, item, inputs)
    return _prove_written(made, item, inputs, target)


def _prove_written(made: Compressed, item: Candidate, inputs: Batch, target: Target) -> Proof:
    pairs = check_structure(item.model, target)
    found = integer_bound(made.deployed, item.program, item.model, inputs, optimize=False)
    detail = (
        f"the file as written, without a runtime's fusions, against the program at {found.output!r}; "
        f"{found.off_by_one:.2%} of the integers at {found.quantizers} quantizations are off, by a tie; "
        f"{pairs} pairs stand as {target.name} reads them"
    )
    return Proof("integer-structure", found.error, found.bound, detail)


def _prove_integers(made: Compressed, item: Candidate, inputs: Batch) -> Proof:
    return _integers(integer_bound(made.deployed, item.program, item.model, inputs))


def _integers(found: IntegerBound) -> Proof:
    detail = (
        f"session against program at {found.output!r}; the bound is half of the quantization error and twice "
        f"what ties between two integers make of the outputs; "
        f"{found.off_by_one:.2%} of the integers at {found.quantizers} quantizations are off, by one step"
    )
    return Proof("integer-bound", found.error, found.bound, detail)

"""The proofs of the lowered candidates, as lines of the report."""

from __future__ import annotations

from fxcompress.api.candidates import Candidate
from fxcompress.api.compress import Compressed
from fxcompress.proof.integer import integer_bound
from fxcompress.proof.parity import float_parity
from fxcompress.report.report import Proof

PROOF_SAMPLES = 4
"""Samples that an int8 model is proven on; each is run operator by operator."""


def prove_float(item: Candidate) -> Proof:
    """Prove a float model against its program, on the example; raises ProofError."""
    found = float_parity(item.program, item.model, item.program.flat_example())
    return Proof("float-parity", found.error, found.bound, "session against program")


def prove_integers(made: Compressed, item: Candidate) -> Proof:
    """Prove an int8 model against its program, on calibration samples; raises ProofError."""
    found = integer_bound(made.deployed, item.program, item.model, made.samples[0])
    return Proof("integer-bound", found.error, found.bound, "session against program")

"""fxcompress: make trained PyTorch models smaller and faster, and prove it."""

from fxcompress.api import Plan, Result, optimize
from fxcompress.errors import (
    BudgetError,
    CaptureError,
    CompressError,
    IllFormed,
    InputError,
    LoweringError,
    NotSupported,
    ProofError,
    UnsafeFile,
)
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import Prune
from fxcompress.plan.quantization import Quantize
from fxcompress.targets.target import Target

__all__ = [
    "Budget",
    "BudgetError",
    "CaptureError",
    "CompressError",
    "IllFormed",
    "InputError",
    "LoweringError",
    "NotSupported",
    "Plan",
    "Program",
    "ProofError",
    "Prune",
    "Quantize",
    "Result",
    "Target",
    "UnsafeFile",
    "capture",
    "load",
    "optimize",
]

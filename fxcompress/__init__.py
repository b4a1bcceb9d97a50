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
from fxcompress.plan.depth import Depth
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import Quantize
from fxcompress.plan.schedule import Schedule
from fxcompress.plan.sparsity import Sparsify
from fxcompress.recipes.recipe import Recipe
from fxcompress.recovery.depth import shorten
from fxcompress.recovery.gradual import prune_gradually
from fxcompress.recovery.regularizers import batch_norm_scale, group_lasso
from fxcompress.targets.target import Target

__all__ = [
    "Budget",
    "BudgetError",
    "CaptureError",
    "CompressError",
    "Depth",
    "IllFormed",
    "InputError",
    "LoweringError",
    "NotSupported",
    "Plan",
    "Program",
    "ProofError",
    "Prune",
    "PruningPlan",
    "Quantize",
    "Recipe",
    "Result",
    "Schedule",
    "Sparsify",
    "Target",
    "UnsafeFile",
    "batch_norm_scale",
    "capture",
    "group_lasso",
    "load",
    "optimize",
    "prune_gradually",
    "shorten",
]

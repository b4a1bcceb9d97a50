"""The stages that a compression is made of, in the order they run."""

from __future__ import annotations

from fxcompress.passes.fold_parameters import FoldParameters
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.remove_identities import RemoveIdentities
from fxcompress.pipeline import Stage

LOSSLESS: tuple[Stage, ...] = (
    RemoveIdentities(),  # first: a dropout between a linear and its batch norm would hide the pair
    FoldParameters(),  # then: a batch norm folds into a stored weight, not into a computed one (weight norm)
    FuseBatchNorm(),
)
"""What every deployed program goes through; it computes what it did before, up to rounding."""

"""The vocabulary of the compiler: one file per pass, each an edit without policy."""

from fxcompress.passes.apply_masks import ApplyMasks
from fxcompress.passes.cancel_layout import CancelLayout
from fxcompress.passes.compensate import Compensate
from fxcompress.passes.contract import Decline, Outcome, Pass
from fxcompress.passes.convolve_norms import ConvolveNorms
from fxcompress.passes.copy_shared_tables import CopySharedTables
from fxcompress.passes.drop_masks import DropMasks
from fxcompress.passes.fold_parameters import FoldParameters
from fxcompress.passes.fuse_affine import FuseAffine
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.fuse_input_normalization import FuseInputNormalization
from fxcompress.passes.fuse_padding import FusePadding
from fxcompress.passes.gather_shuffles import GatherShuffles
from fxcompress.passes.merge_branches import MergeBranches
from fxcompress.passes.merge_linears import MergeLinears
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.pool_globally import PoolGlobally
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.passes.recognize_activations import RecognizeActivations
from fxcompress.passes.reestimate_batch_norm import ReestimateBatchNorm
from fxcompress.passes.remove_blocks import RemoveBlocks
from fxcompress.passes.remove_duplicates import RemoveDuplicates
from fxcompress.passes.remove_identities import RemoveIdentities
from fxcompress.passes.split_packed_linears import SplitPackedLinears

__all__ = [
    "ApplyMasks",
    "CancelLayout",
    "Compensate",
    "ConvolveNorms",
    "CopySharedTables",
    "Decline",
    "DropMasks",
    "FoldParameters",
    "FuseAffine",
    "FuseBatchNorm",
    "FuseInputNormalization",
    "FusePadding",
    "GatherShuffles",
    "MergeBranches",
    "MergeLinears",
    "Outcome",
    "PackLinears",
    "Pass",
    "PoolGlobally",
    "PruneChannels",
    "QuantizeTensors",
    "RecognizeActivations",
    "ReestimateBatchNorm",
    "RemoveBlocks",
    "RemoveDuplicates",
    "RemoveIdentities",
    "SplitPackedLinears",
]

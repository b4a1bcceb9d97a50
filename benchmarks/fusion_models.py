"""One small network per fusion rule, in which the rule applies at sizes that real networks have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from benchmarks.fusion_networks import (
    Attending,
    Branches,
    LayerScaled,
    Padded,
    Preactivated,
    RootNormed,
    Shuffled,
    Written,
    byte_stem,
    collapsible,
    last_and_first,
    normed_rows,
    norms,
    padded,
    padded_on_one_side,
    patches,
    pooled_by_windows,
    spelled_out,
    squeezed,
    stem,
    twice,
    vit_block,
)


@dataclass(frozen=True)
class Subject:
    """A network for a rule: a pass by its spelling in recipes, a lowering form of a target, or a rewrite of
    the lowering that every file goes through.

    `instead` are rules that do a part of it where it is missing; "without" is without them too. `never` are
    rules that would hide it; both are without them. `integers`: both are in INT8. `static`: the batch is one.
    """

    rule: str
    network: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    instead: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    integers: bool = False
    static: bool = False


INEXACT = frozenset({"pool-globally"})
"""Rules without which the runtime does not compute what the program does."""

UNTIMED: Mapping[str, str] = {
    "remove-identities": "clears the way for other rules; the runtime removes identities itself",
    "fold-parameters": "computes at once what the runtime would compute as it loads",
    "share-initializers": "the size of the file",
    "store-zero-points": "files that load: the runtime wants zero points stored",
    "mask-with-infinity": "rows that see nothing come out as in torch",
    "cancel-quantization": "models that come with pairs after pairs; our own programs have none",
    "part-from-transposes": "files that load: without it the runtime ends the process",
}
"""What a program or a file goes through for another reason than speed."""


SUBJECTS = (
    Subject("fuse-batch-norm", "3 x conv, norm, relu; 64 at 28", norms, (1, 64, 28, 28)),
    Subject(
        "fuse-affine",
        "2 ConvNeXt blocks; 96 at 28",
        lambda: nn.Sequential(LayerScaled(96), LayerScaled(96)),
        (1, 96, 28, 28),
    ),
    Subject("fuse-affine", "norms before linears; 512 to 1024", normed_rows, (16, 512)),
    Subject(
        "fuse-input-normalization",
        "ViT's patches of 16, mean per channel",
        lambda: Written(patches, stem=stem(kernel_size=16, stride=16)),
        (1, 3, 224, 224),
        instead=("fuse-affine",),
    ),
    Subject(
        "fuse-input-normalization",
        "padded stem 7x7, one mean",
        lambda: Written(byte_stem, stem=stem(kernel_size=7, stride=2, padding=3)),
        (1, 3, 224, 224),
    ),
    Subject(
        "fuse-padding",
        "padded depthwise 3x3 and pool; 64 at 56",
        lambda: Written(padded, a=nn.Conv2d(64, 64, 3, groups=64), b=nn.Conv2d(64, 64, 3, 2, groups=64)),
        (1, 64, 56, 56),
    ),
    Subject(
        "merge-branches",
        "3 RepVGG blocks; 64 at 28",
        lambda: nn.Sequential(*(Branches(64) for _ in range(3))),
        (1, 64, 28, 28),
    ),
    Subject(
        "merge-linears",
        "expanded 1x1 then 3x3; 64-256-64 at 28",
        lambda: Written(
            collapsible, wide=nn.Conv2d(64, 256, 1, bias=False), narrow=nn.Conv2d(256, 64, 3, padding=1)
        ),
        (1, 64, 28, 28),
    ),
    Subject(
        "recognize-activations",
        "3 x 1x1 conv, hard-swish spelled out; 64 at 28",
        spelled_out,
        (1, 64, 28, 28),
    ),
    Subject(
        "recognize-activations",
        "INT8: the same",
        spelled_out,
        (1, 64, 28, 28),
        integers=True,
    ),
    Subject(
        "cancel-layout",
        "hard-swish on channels last; 64 at 28",
        lambda: Written(last_and_first, a=nn.Conv2d(64, 64, 1), b=nn.Conv2d(64, 64, 1)),
        (1, 64, 28, 28),
    ),
    Subject(
        "remove-duplicates",
        "two heads that each call the body; 64 at 28",
        lambda: Written(
            twice,
            body=nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
            head=nn.Sequential(nn.Conv2d(64, 64, 1), nn.Sigmoid()),
            other=nn.Conv2d(64, 64, 1),
        ),
        (1, 64, 28, 28),
    ),
    Subject(
        "drop-masks",
        "ViT-S block under an open mask; 197 tokens",
        lambda: Attending(384, 6, 197, masked=True),
        (1, 197, 384),
    ),
    Subject(
        "multi-head-attention",
        "ViT-S block; 197 tokens",
        vit_block,
        (1, 197, 384),
    ),
    Subject(
        "use-global-average-pool",
        "2 convolutions with squeeze-excitation; 64 at 28",
        squeezed,
        (1, 64, 28, 28),
    ),
    Subject(
        "transpose-keys-directly",
        "ViT-S block; 197 tokens",
        vit_block,
        (1, 197, 384),
        never=("multi-head-attention",),
    ),
    Subject(
        "lighten-guards",
        "attention of padded tokens; 6 heads, 197",
        lambda: Padded(384, 6, 197, masked=False),
        (1, 197, 384),
    ),
    Subject(
        "divide-by-root",
        "2 hand-written RMS norms; 197 x 384",
        lambda: RootNormed(384),
        (1, 197, 384),
    ),
    Subject(
        "pool-globally",
        "INT8: a window larger than the image; 320-1280 at 7",
        lambda: Written(pooled_by_windows, body=nn.Conv2d(320, 1280, 1), head=nn.Conv2d(1280, 100, 1)),
        (1, 320, 7, 7),
        integers=True,
    ),
    Subject(
        "gather-shuffles",
        "INT8: 1x1 conv, 3 ShuffleNetV2 units; 116 at 28",
        lambda: nn.Sequential(nn.Conv2d(116, 116, 1), nn.ReLU(), *(Shuffled(116) for _ in range(3))),
        (1, 116, 28, 28),
        integers=True,
        static=True,
    ),
    Subject(
        "convolve-norms",
        "INT8: 2 DenseNet layers; 128 and 160 at 28",
        lambda: nn.Sequential(Preactivated(128, 32), Preactivated(160, 32), nn.Conv2d(192, 96, 1)),
        (1, 128, 28, 28),
        integers=True,
    ),
    Subject(
        "space-to-depth",
        "INT8: stem 3x3 stride 2 to 32 at 224",
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1, groups=32)),
        (1, 3, 224, 224),
        integers=True,
    ),
    Subject(
        "pad-in-convolutions",
        "INT8: 2 depthwise 3x3 stride 2, padded on one side; 96 at 112",
        lambda: Written(
            padded_on_one_side,
            stem=nn.Conv2d(96, 96, 2),
            a=nn.Conv2d(96, 96, 3, 2, groups=96),
            b=nn.Conv2d(96, 96, 3, 2, groups=96),
        ),
        (1, 96, 112, 112),
        integers=True,
    ),
    Subject(
        "fold-weight-transposes",
        "INT8: ViT-S block; 197 tokens",
        vit_block,
        (1, 197, 384),
        integers=True,
    ),
    Subject(
        "use-global-average-pool",
        "INT8: 2 convolutions with squeeze-excitation; 64 at 28",
        squeezed,
        (1, 64, 28, 28),
        integers=True,
    ),
)

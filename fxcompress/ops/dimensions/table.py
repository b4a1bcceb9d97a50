"""One row per operator: how its dimensions relate. An operator without a row freezes what it touches.

PyTorch itself marks the operators that act position by position (`torch.Tag.pointwise`); those need no row.
"""

from __future__ import annotations

from typing import Any

import torch

from fxcompress.ops.dimensions import attention, contraction, elementwise, layout, normalisation
from fxcompress.ops.dimensions.space import Rule

_FAMILIES: tuple[tuple[Rule, str], ...] = (
    (contraction.linear, "linear"),
    (contraction.matmul, "matmul mm bmm mv dot vdot"),
    (contraction.addmm, "addmm baddbmm"),
    (contraction.einsum, "einsum"),
    (
        contraction.convolution,
        "conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding convolution",
    ),
    (contraction.transposed_convolution, "conv_transpose1d conv_transpose2d.input conv_transpose3d.input"),
    (normalisation.batch_norm, "batch_norm instance_norm"),
    (
        normalisation.native_batch_norm,
        "_native_batch_norm_legit_no_training _native_batch_norm_legit.no_stats native_batch_norm "
        "_batch_norm_no_update",
    ),
    (normalisation.layer_norm, "layer_norm rms_norm"),
    (normalisation.native_layer_norm, "native_layer_norm"),
    (normalisation.group_norm, "group_norm"),
    (normalisation.native_group_norm, "native_group_norm"),
    (normalisation.weight_norm, "_weight_norm _weight_norm_interface"),
    (normalisation.softmax, "softmax.int _softmax log_softmax.int _log_softmax _safe_softmax"),
    (
        normalisation.reduction,
        "mean mean.dim sum sum.dim_IntList amax amin var var.dim var.correction std std.dim "
        "std.correction var_mean.correction prod prod.dim_int logsumexp linalg_vector_norm "
        "norm.ScalarOpt_dim norm.Scalar max min any any.dim all all.dim",
    ),
    (normalisation.ordered_reduction, "max.dim min.dim argmax argmin"),
    (
        normalisation.pooling,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d max_pool2d_with_indices "
        "max_pool1d_with_indices max_pool3d_with_indices upsample_nearest1d upsample_nearest1d.vec "
        "upsample_nearest2d upsample_nearest2d.vec upsample_nearest3d upsample_nearest3d.vec "
        "_upsample_nearest_exact2d _upsample_nearest_exact2d.vec upsample_bilinear2d "
        "upsample_bilinear2d.vec upsample_bicubic2d upsample_bicubic2d.vec upsample_linear1d "
        "upsample_linear1d.vec upsample_trilinear3d upsample_trilinear3d.vec _upsample_bilinear2d_aa "
        "_upsample_bicubic2d_aa",
    ),
    (attention.scaled_dot_product_attention, "scaled_dot_product_attention"),
    (attention.embedding, "embedding"),
    (attention.index, "index.Tensor"),
    (attention.index_select, "index_select"),
    (
        layout.reshape,
        "view reshape _unsafe_view flatten.using_ints unflatten.int squeeze squeeze.dim squeeze.dims "
        "unsqueeze",
    ),
    (layout.reshape_as, "view_as reshape_as"),
    (layout.permute, "permute permute_copy"),
    (layout.transpose, "transpose.int t swapaxes swapdims"),
    (layout.movedim, "movedim.int movedim.intlist"),
    (layout.cat, "cat concat concatenate"),
    (layout.stack, "stack"),
    (
        layout.split,
        "split.Tensor split.sizes split_with_sizes chunk tensor_split.sections tensor_split.indices",
    ),
    (layout.unbind, "unbind.int"),
    (layout.select, "select.int"),
    (layout.slice_, "slice.Tensor"),
    (layout.narrow, "narrow"),
    (layout.pad, "pad constant_pad_nd"),
    (layout.repeat, "repeat tile"),
    (layout.repeat_interleave, "repeat_interleave.self_int"),
    (layout.positions_matter, "roll flip cumsum cumprod sort topk argsort"),
    (layout.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    (layout.pixel_shuffle, "pixel_shuffle"),
    (layout.pixel_unshuffle, "pixel_unshuffle"),
    (
        layout.filled,
        "zeros ones full new_zeros new_ones new_full scalar_tensor",
    ),
    (
        layout.generated,
        "arange arange.start arange.start_step eye eye.m linspace one_hot",
    ),
    (elementwise.dropout_with_mask, "native_dropout"),
    (elementwise.expand, "expand broadcast_to"),
    (elementwise.expand_as, "expand_as"),
    (elementwise.glu, "glu"),
    (elementwise.prelu, "prelu"),
    (elementwise.triangle, "tril triu"),
    (
        elementwise.same,
        "dropout feature_dropout alpha_dropout feature_alpha_dropout clone contiguous detach alias "
        "lift_fresh_copy to.dtype to.dtype_layout to.device to.other type_as _to_copy zeros_like "
        "ones_like full_like",
    ),
    (
        elementwise.elementwise,
        "where.self masked_fill.Scalar masked_fill.Tensor clamp clamp.Tensor clamp_min clamp_max silu "
        "gelu mish hardswish hardsigmoid hardtanh relu relu6 leaky_relu elu selu celu softplus softshrink "
        "hardshrink threshold sigmoid tanh rsub.Scalar rsub.Tensor fake_quantize_per_tensor_affine "
        "logical_and logical_or logical_not bitwise_and.Tensor bitwise_or.Tensor bitwise_not log_sigmoid "
        "floor_divide remainder.Scalar",
    ),
)


def _overload(name: str) -> Any:
    """`mean.dim` of the aten namespace; None when the installed torch does not have it."""
    packet_name, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, packet_name, None)
    return None if packet is None else getattr(packet, overload or "default", None)


RULES: dict[Any, Rule] = {
    target: rule
    for rule, names in _FAMILIES
    for name in names.split()
    if (target := _overload(name)) is not None
}


def rule_for(target: Any) -> Rule | None:
    """The dimension rule of an operator, or None: then everything it touches must be frozen."""
    rule = RULES.get(target)
    if rule is None and isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return elementwise.elementwise
    return rule

"""One row per operator: how its dimensions relate. An operator without a row freezes what it touches.

PyTorch itself marks the operators that act position by position (`torch.Tag.pointwise`); those need no row.
"""

from __future__ import annotations

from typing import Any

import torch

from fxcompress.ops.dimensions import (
    attention,
    contraction,
    distance,
    elementwise,
    indexing,
    layout,
    normalisation,
    recurrent,
    windows,
)
from fxcompress.ops.dimensions.space import Rule

_FAMILIES: tuple[tuple[Rule, str], ...] = (
    (contraction.linear, "linear"),
    (contraction.matmul, "matmul mm bmm mv dot vdot"),
    (contraction.addmm, "addmm baddbmm"),
    (contraction.einsum, "einsum"),
    (contraction.tensordot, "tensordot"),
    (contraction.bilinear, "bilinear"),
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
        "norm.ScalarOpt_dim norm.Scalar max min any any.dim all all.dim std_mean.dim std_mean.correction "
        "var_mean.dim nanmean nansum linalg_norm aminmax count_nonzero.dim_IntList",
    ),
    (normalisation.kth_value, "kthvalue"),
    (normalisation.quantile, "quantile quantile.scalar nanquantile nanquantile.scalar"),
    (normalisation.ordered_reduction, "max.dim min.dim argmax argmin median.dim nanmedian.dim mode"),
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
    (recurrent.lstm, "lstm.input"),
    (recurrent.recurrent, "gru.input rnn_tanh.input rnn_relu.input"),
    (recurrent.cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    (indexing.embedding, "embedding"),
    (
        indexing.embedding_bag,
        "embedding_bag embedding_bag.padding_idx _embedding_bag_forward_only _embedding_bag",
    ),
    (indexing.index, "index.Tensor"),
    (indexing.index_put, "index_put"),
    (indexing.index_select, "index_select"),
    (indexing.index_write, "index_add index_copy index_fill.int_Scalar index_reduce"),
    (indexing.gather, "gather"),
    (indexing.take_along_dim, "take_along_dim"),
    (
        indexing.scatter,
        "scatter.src scatter.value scatter.reduce scatter.value_reduce scatter_add scatter_reduce.two",
    ),
    (indexing.select_scatter, "select_scatter"),
    (indexing.slice_scatter, "slice_scatter"),
    (windows.unfold, "unfold"),
    (windows.im2col, "im2col"),
    (windows.col2im, "col2im"),
    (windows.max_unpool, "max_unpool2d max_unpool3d"),
    (windows.grid_sampler, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    (windows.affine_grid, "affine_grid_generator"),
    (distance.cdist, "cdist _cdist_forward"),
    (distance.cross, "cross linalg_cross"),
    (distance.similarity, "cosine_similarity pairwise_distance"),
    (
        layout.reshape,
        "view reshape _unsafe_view flatten.using_ints unflatten.int squeeze squeeze.dim squeeze.dims "
        "unsqueeze ravel atleast_1d atleast_2d atleast_3d",
    ),
    (layout.reshape_as, "view_as reshape_as"),
    (layout.permute, "permute permute_copy"),
    (layout.transpose, "transpose.int t swapaxes swapdims"),
    (layout.reverse, "numpy_T"),
    (layout.matrix_transpose, "mT mH adjoint"),
    (layout.movedim, "movedim.int movedim.intlist moveaxis.int moveaxis.intlist"),
    (layout.cat, "cat concat concatenate"),
    (layout.hstack, "hstack"),
    (layout.vstack, "vstack row_stack"),
    (layout.meshgrid, "meshgrid meshgrid.indexing"),
    (layout.stack, "stack"),
    (
        layout.split,
        "split.Tensor split.sizes split_with_sizes chunk tensor_split.sections tensor_split.indices "
        "unsafe_split.Tensor unsafe_split_with_sizes unsafe_chunk hsplit.int hsplit.array vsplit.int "
        "vsplit.array dsplit.int dsplit.array",
    ),
    (layout.unbind, "unbind.int"),
    (layout.select, "select.int"),
    (layout.slice_, "slice.Tensor"),
    (layout.narrow, "narrow"),
    (layout.pad, "pad constant_pad_nd"),
    (layout.repeat, "repeat tile"),
    (layout.repeat_interleave, "repeat_interleave.self_int"),
    (
        layout.positions_matter,
        "flip cumsum cumprod cummax cummin logcumsumexp sort sort.stable topk argsort argsort.stable diff",
    ),
    (layout.roll, "roll"),
    (layout.diagonal, "diagonal"),
    (layout.diag_embed, "diag_embed"),
    (layout.view_as_complex, "view_as_complex"),
    (layout.view_as_real, "view_as_real"),
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
    (elementwise.broadcast_tensors, "broadcast_tensors"),
    (elementwise.outer, "outer ger"),
    (elementwise.glu, "glu"),
    (elementwise.prelu, "prelu"),
    (elementwise.triangle, "tril triu"),
    (
        elementwise.same,
        "dropout feature_dropout alpha_dropout feature_alpha_dropout clone contiguous detach alias "
        "lift_fresh_copy to.dtype to.dtype_layout to.device to.other type_as _to_copy zeros_like "
        "ones_like full_like empty_like rand_like randn_like real imag conj _conj resolve_conj resolve_neg",
    ),
    (
        elementwise.elementwise,
        "where.self masked_fill.Scalar masked_fill.Tensor clamp clamp.Tensor clamp_min clamp_max silu "
        "gelu mish hardswish hardsigmoid hardtanh relu relu6 leaky_relu elu selu celu softplus softshrink "
        "hardshrink threshold sigmoid tanh rsub.Scalar rsub.Tensor fake_quantize_per_tensor_affine "
        "logical_and logical_or logical_not bitwise_and.Tensor bitwise_or.Tensor bitwise_not log_sigmoid "
        "floor_divide remainder.Scalar complex polar where.ScalarOther where.ScalarSelf isclose fix "
        "special_expit divide.Tensor divide.Scalar multiply.Tensor multiply.Scalar subtract.Tensor negative "
        "absolute greater.Tensor greater.Scalar greater_equal.Tensor greater_equal.Scalar less.Tensor "
        "less.Scalar less_equal.Tensor less_equal.Scalar not_equal.Tensor not_equal.Scalar arctan arctan2 "
        "arcsin arccos arcsinh arccosh arctanh",
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

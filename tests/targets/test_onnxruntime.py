"""The target as data: what changes with the CPU, and how it is looked up."""

from __future__ import annotations

import pytest

from fxcompress.errors import InputError, NotSupported
from fxcompress.ops.quantization import Kind
from fxcompress.targets.catalog import resolve
from fxcompress.targets.onnxruntime import cpu_features, onnxruntime


@pytest.mark.parametrize(
    ("features", "block", "bits", "limit"),
    [
        ({"x86_64", "avx2"}, 8, 7, 64),
        ({"x86_64", "avx2", "avx_vnni"}, 8, 8, 127),
        ({"x86_64", "avx512f", "avx512bw"}, 16, 7, 64),
        ({"x86_64", "avx512f", "avx512_vnni"}, 16, 8, 127),
        ({"x86_64", "avx512f", "amx_int8"}, 16, 8, 127),
        ({"aarch64"}, 8, 8, 127),
        (set(), 8, 7, 64),
    ],
)
def test_the_cpu_decides_block_and_weight_bits(features, block, bits, limit):
    target = onnxruntime(features)
    assert (target.channel_block, target.weight_bits, target.weight_limit) == (block, bits, limit)


def test_the_reduced_range_cannot_saturate_a_pair_of_products():
    assert 2 * 255 * onnxruntime({"avx2"}).weight_limit <= 2**15 - 1
    assert 2 * 255 * 127 > 2**15 - 1


def test_every_kind_has_a_kernel_or_a_reason():
    target = onnxruntime()
    assert target.integer_tables, "which is how lookups are spoken for"
    spoken = {*target.kernels, Kind.LOOKUP}
    assert {kind for kind in Kind if kind not in spoken} == set(target.float_reasons)


def test_names_resolve_and_targets_pass():
    target = resolve("onnxruntime")
    assert target == onnxruntime(cpu_features())
    assert resolve(target) is target
    with pytest.raises(NotSupported, match="no target 'vulkan'") as caught:
        resolve("vulkan")
    with pytest.raises(InputError, match="neither a name nor a Target") as caught:
        resolve(["onnxruntime"])  # a list, as a user may write
    assert "onnxruntime" in (caught.value.hint or "")
    assert "onnxruntime" in str(caught.value)

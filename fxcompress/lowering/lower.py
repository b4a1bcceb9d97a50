"""From a program to an ONNX model that the installed runtime accepts, under the names the program has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger.logger import G_LOGGER, LoggerSuppress

from fxcompress.errors import InputError, LoweringError
from fxcompress.graph.program import Program
from fxcompress.lowering import provenance
from fxcompress.lowering.acceptance import accept
from fxcompress.lowering.attention_forms import transpose_keys_directly
from fxcompress.lowering.cancel_quantization import cancel_quantization
from fxcompress.lowering.decompose import EXPORTED
from fxcompress.lowering.export import export
from fxcompress.lowering.fold_weight_transposes import fold_weight_transposes
from fxcompress.lowering.guard_forms import lighten_guards
from fxcompress.lowering.half_forms import part_from_transposes
from fxcompress.lowering.head_forms import MULTI_HEAD_ATTENTION, use_multi_head_attention
from fxcompress.lowering.identities import remove_identities
from fxcompress.lowering.interface import check_names, name_dimensions, name_interface
from fxcompress.lowering.mask_forms import mask_with_infinity
from fxcompress.lowering.norm_forms import divide_by_root
from fxcompress.lowering.opsets import choose_opset, convert_down, negotiate_ir
from fxcompress.lowering.pad_forms import pad_in_convolutions
from fxcompress.lowering.pool_forms import use_global_average_pool
from fxcompress.lowering.share_initializers import share_initializers
from fxcompress.lowering.stem_forms import SPACE_TO_DEPTH, use_space_to_depth
from fxcompress.lowering.zero_points import store_zero_points

Rewrite = Callable[[Any], int]

REWRITES: tuple[Rewrite, ...] = (
    remove_identities,
    store_zero_points,
    use_global_average_pool,
    transpose_keys_directly,
    mask_with_infinity,
    lighten_guards,
    divide_by_root,
    fold_weight_transposes,
    cancel_quantization,
    pad_in_convolutions,
    part_from_transposes,
    share_initializers,
)
"""In the order they are applied."""

FORMS: Mapping[str, Rewrite] = {
    MULTI_HEAD_ATTENTION: use_multi_head_attention,
    SPACE_TO_DEPTH: use_space_to_depth,
}
"""By names that a target lists, rewrites to what one runtime alone reads or gains from; after the others."""


def lower(
    program: Program,
    *,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    forms: AbstractSet[str] = frozenset(),
) -> onnx.ModelProto:
    """Write a program in evaluation mode as an ONNX model: exported, rewritten, checked, loaded and run.

    Args:
        opset: version of the standard operator set; 20 (or what the runtime reads) when left out.
        input_names: names for the flat inputs, in the order of `program.signature.inputs`.
        output_names: names for the flat outputs, in the order of `program.signature.outputs`.
        forms: names of `FORMS` to write, which only some runtimes read; none when left out.

    Raises:
        InputError: an opset, names or forms that cannot be.
        LoweringError: an operator has no ONNX form, or the result does not work in the installed runtime.
    """
    if program.training:
        raise LoweringError("the program is in training mode", hint="call program.eval() before lowering")
    check_names(program.signature, input_names, output_names)
    target = choose_opset(opset)
    exported = export(program, max(target, EXPORTED))
    provenance.rename(exported, program)
    name_dimensions(exported.model, exported.symbols)
    name_interface(
        exported.model, input_names or program.signature.inputs, output_names or program.signature.outputs
    )
    steps = rewrites(forms)
    model = rewrite(exported.model, steps if target >= EXPORTED else REWRITES)
    if target < EXPORTED:
        model = convert_down(model, target)
    provenance.strip(model)
    provenance.attach(model, program)
    negotiate_ir(model)
    accept(model, program)
    return model


def rewrites(forms: AbstractSet[str]) -> tuple[Rewrite, ...]:
    """The rewrites for a runtime that reads these forms.

    Raises:
        InputError: a form that is not known.
    """
    unknown = sorted(forms - FORMS.keys())
    if unknown:
        raise InputError(f"{unknown[0]!r} is no lowering form", hint=f"forms are: {', '.join(FORMS)}")
    return (*REWRITES, *(rewrite for name, rewrite in FORMS.items() if name in forms))


def rewrite(model: onnx.ModelProto, steps: Sequence[Rewrite] = REWRITES) -> onnx.ModelProto:
    """The model after onnx-graphsurgeon rewrites, each followed by the removal of what nothing reads.

    Sizes and types of intermediate values are read by the rewrites and written by nobody: the runtime infers
    them.
    """
    with LoggerSuppress(G_LOGGER, G_LOGGER.ERROR):
        graph = gs.import_onnx(model)
        for step in steps:
            if step(graph):
                graph.cleanup(remove_unused_graph_inputs=False)
        graph.toposort()
        return gs.export_onnx(graph, do_type_check=False, ir_version=model.ir_version)

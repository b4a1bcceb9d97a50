"""The nasty modules: analysed as they should be, pruned at random in every group, proven, exported again.

Their ideas are what issue 3 names and what peers fail on: reshapes, shuffles, gated units and pixel shuffle
(TP#57 #125 #366 #98 #45), attention without help (TP#101 #340), recurrent layers (TP#44).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from fxcompress.analysis.cost import cost
from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from tests.architectures.nasty import Nasty
from tests.architectures.nasty_attention import ATTENTION
from tests.architectures.nasty_convolution import CONVOLUTION
from tests.architectures.nasty_layout import LAYOUT
from tests.architectures.nasty_recurrent import RECURRENT
from tests.architectures.nasty_space import SPACE
from tests.architectures.programs import call, largest_difference
from tests.ops.proving import at_batch, shrinking_plan

TABLES = (ATTENTION, CONVOLUTION, SPACE, LAYOUT, RECURRENT)
NASTY = {nasty.name: nasty for table in TABLES for nasty in table}

QUICK = frozenset({"gqa_by_flag", "grouped", "rolled_channels", "unfolded_patches", "lstm"})
"""Those that become ONNX in the default tier; all others do in the slow one."""

SECOND = frozenset(
    [
        "gqa_by_repeat_interleave",
        "multi_query",
        "rotary_halves",
        "packed_qkv_unbind",
        "class_token",
        "learned_queries",
        "multihead_attention",
        "encoder_layer",
        "masked_scores",
        "normalised_queries",
        "linear_attention",
        "talking_heads",
        "three_dimensions",
        "layer_scale",
        "group_norms",
        "standardised_weights",
        "inception",
        "feature_pyramid",
        "squeeze_excitation",
        "adaptive_flatten",
        "space_to_depth_by_slices",
        "sliding_windows",
        "index_added_rows",
        "stacked_inside",
        "tiled",
        "packed_geglu",
        "normalised_features",
        "lstm_last_state",
        "lstm_initial_states",
        "gru",
        "rnn",
        "rnn_relu",
        "lstm_projected",
        "gru_cell",
        "lstm_cell",
        "convolutional_lstm",
        "selective_scan",
        "mixture_of_experts",
        "dense_block",
        "unpooled",
        "gru_time_first",
    ]
)
"""Second forms of an idea, or tested elsewhere: in the slow tier only."""

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def tiered(quick: Callable[[str], bool], among: Callable[[Nasty], object] = bool) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[] if quick(name) else [pytest.mark.slow])
            for name, nasty in NASTY.items()
            if among(nasty)
        ],
    )


@cache
def captured(name: str) -> Program:
    """Shared: passes copy what they edit."""
    nasty = NASTY[name]
    return capture(nasty.model(), nasty.example())


@cache
def analysed(name: str) -> Analysis:
    return analyse(captured(name))


def pruned_and_proven(name: str, seed: int) -> Program:
    """Prune every group to a random number of random indices and prove the removal.

    Every second seed proves it at another batch size; seed 0 leaves as few indices as can be.
    """
    program, analysis = captured(name), analysed(name)
    plan = shrinking_plan(analysis, seed)
    pruned = PruneChannels(plan).run(program).program
    well_formed(pruned)
    if program.signature.dynamic and seed % 2:
        masked_equivalence(at_batch(program, 3), at_batch(pruned, 3), plan, seed=seed)
    else:
        masked_equivalence(program, pruned, plan, seed=seed)
    assert cost(pruned) == plan.after
    return pruned


def test_there_are_enough_of_them() -> None:
    assert len(NASTY) == sum(map(len, TABLES)) >= 45, "two have the same name, or there are too few"
    assert all(nasty.function.__doc__ for nasty in NASTY.values())


@tiered(lambda name: name not in SECOND)
def test_groups_are_those_that_there_are(name: str) -> None:
    """Nothing is frozen without need, and no operator is unknown but where it must be."""
    analysis = analysed(name)
    unknown = {item.reason for item in analysis.frozen if "rule" in item.reason}
    assert unknown == {f"no rule for aten.{operator}.default" for operator in NASTY[name].unknown}
    assert tuple(sorted(group.size for group in analysis.groups)) == NASTY[name].sizes


@tiered(lambda name: name not in SECOND, lambda nasty: nasty.sizes)
def test_what_can_go_goes(name: str) -> None:
    for seed in range(2):
        pruned_and_proven(name, seed)


@tiered(lambda name: name in QUICK)
def test_pruned_and_lowered(name: str) -> None:
    """The ONNX session computes what the pruned program does, at another batch size if that may vary.

    Lowering exports the pruned module again, like any other.
    """
    pruned = pruned_and_proven(name, 2) if NASTY[name].sizes else captured(name)
    batch = 3 if pruned.signature.dynamic else 2
    inputs = pruned.flat_inputs(NASTY[name].example(batch, seed=5), {})
    float_parity(pruned, lower(pruned), inputs)


@tiered(lambda name: False, lambda nasty: nasty.sizes)
def test_the_pruned_module_is_a_model(name: str) -> None:
    """It is captured again like any other, and computes the same."""
    pruned, inputs = pruned_and_proven(name, 3), NASTY[name].example()
    again = capture(pruned.module, inputs)
    assert largest_difference(call(again, inputs), call(pruned, inputs)) < 1e-6  # float32

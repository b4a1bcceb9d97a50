"""Loosening on whole architectures: what it frees, and that everything after it holds."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import fxcompress
from fxcompress.analysis.groups import Analysis, Group, analyse
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.loosening import LOOSEN, REWRITES, loosened
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.pruning_plan import make_plan
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from tests.architectures.programs import captured, random_plan


@cache
def analysed(name: str) -> tuple[Analysis, Analysis]:
    """Of the user's program and of the loosened one."""
    program = captured(name, 1)
    return analyse(program), analyse(Journal().apply_all(LOOSEN, program))


def of(analysis: Analysis, tensor: str) -> list[Group]:
    return [group for group in analysis.groups if any(member.tensor == tensor for member in group.members)]


def tensors(groups: list[Group]) -> set[str]:
    return {member.tensor for group in groups for member in group.members}


def test_the_value_width_of_a_vision_transformer_is_free() -> None:
    """One reshape to (3, heads, width) tied it; torchvision, timm and others write it so."""
    before, after = analysed("vit_packed")
    assert (len(before.groups), len(after.groups)) == (7, 9)
    for block in (0, 1):
        name = f"blocks.{block}.attention.qkv"
        shared = [group for group in of(before, f"{name}.weight") if group.size == 16]
        assert len(shared) == 1
        (value,) = [group for group in of(after, f"{name}.weight_2") if group.size == 16]
        assert tensors([value]) == {
            f"{name}.weight_2",
            f"{name}.bias_2",
            f"blocks.{block}.attention.proj.weight",
        }
        (query,) = [group for group in of(after, f"{name}.weight_0") if group.size == 16]
        assert tensors([query]) == {f"{name}.{kind}_{part}" for kind in ("weight", "bias") for part in (0, 1)}


@pytest.mark.parametrize("name", ["hf_llama", pytest.param("hf_llama_eager", marks=pytest.mark.slow)])
def test_each_layer_has_a_rotary_width_of_its_own(name: str) -> None:
    """One table of frequencies tied the query and key width of all layers."""
    before, after = analysed(name)
    table = "model.rotary_emb.inv_freq"
    (shared,) = of(before, table)
    layers = [f"model.layers.{layer}.self_attn" for layer in (0, 1)]
    assert tensors([shared]) == {table, *(f"{layer}.{part}_proj.weight" for layer in layers for part in "qk")}
    for copy, layer in enumerate(layers):
        (own,) = of(after, f"{table}_{copy}")
        assert tensors([own]) == {f"{table}_{copy}", *(f"{layer}.{part}_proj.weight" for part in "qk")}


@pytest.mark.parametrize("name", ["hf_gpt2", "vit_softmax"])
def test_what_is_split_by_width_is_left_as_it_is(name: str) -> None:
    """Thirds of the width have three widths already: splitting would only make the graph longer."""
    journal = Journal()
    program = captured(name, 1)
    assert journal.apply_all(LOOSEN, program) is program
    reasons = {item.reason for item in journal.entries[0].declined}
    assert reasons == {"its parts have widths of their own already"}


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("vit_packed", 1),
        *(
            pytest.param(name, seed, marks=pytest.mark.slow)
            for name in ("vit_packed", "hf_llama", "hf_llama_eager", "hf_gpt2")
            for seed in (2, 3)
        ),
    ],
)
def test_random_plans_are_proven_against_the_users_program_and_lowered(name: str, seed: int) -> None:
    program, (_, loose) = captured(name, 1), analysed(name)
    plan = random_plan(loose, seed)
    stored = {str(node.target) for node in walk.tensor_nodes(program)}
    assert {alias for tensor in stored for alias in walk.aliases(program, tensor)} >= set(plan.kept)
    pruned = PruneChannels(plan).run(program).program
    handed_out = PackLinears().run(pruned).program
    well_formed(handed_out)
    assert masked_equivalence(program, handed_out, plan, seed=seed).response > 1e-3
    assert cut(program, plan.kept).items() <= handed_out_shapes(handed_out).items()
    float_parity(handed_out, lower(handed_out), handed_out.flat_example())


def cut(program: Program, kept: object) -> dict[str, tuple[int, ...]]:
    """The shapes that the user's tensors have once they hold what is kept."""
    assert isinstance(kept, dict)
    shapes = {}
    for name, dims in kept.items():
        shape = list(walk.tensor(program, name).shape)
        for dim, stay in dims.items():
            shape[dim] = len(stay)
        shapes[name] = tuple(shape)
    return shapes


def handed_out_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    state = program.module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_a_program_is_loosened_once() -> None:
    program = captured("vit_packed", 1)
    once = loosened(program, ["split-packed-linears"])
    assert loosened(once, ["split-packed-linears"]) is once
    assert once.origins.rewrites == ("split-packed-linears",)
    assert torch.equal(
        walk.tensor(once, "blocks.0.attention.qkv.weight_1"),
        walk.tensor(program, "blocks.0.attention.qkv.weight")[64:128],
    )


def test_rewrites_are_known_by_their_names() -> None:
    assert {name: item.name for name, item in REWRITES.items()} == {name: name for name in REWRITES}
    assert [stage.name for stage in LOOSEN] == list(REWRITES)[:2]


@pytest.mark.slow
def test_a_given_plan_is_applied_after_its_own_rewrites_only() -> None:
    """A plan made on the program as it is finds its groups there; one of a result has its rewrites."""
    program = captured("vit_packed", 1)
    by_hand = make_plan(analysed("vit_packed")[0], {"blocks.0.attention.qkv.weight[0]:2": tuple(range(8))})
    assert fxcompress.optimize(program, prune=by_hand).plan.pruning == by_hand
    made = make_plan(analysed("vit_packed")[1], {"blocks.0.attention.qkv.weight_2[0]:1": tuple(range(8))})
    assert fxcompress.optimize(program, prune=made).plan.pruning == made

"""Masks: exact counts, the right dimension for N:M, gradual masks that never come back, honest reports."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.cost import cost
from fxcompress.analysis.density import densities, density, gzip_bytes
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.apply_masks import ApplyMasks
from fxcompress.plan.masking import plan_sparsity
from fxcompress.plan.sparsity import STATEMENT, Sparsify, SparsityPlan
from tests.passes.models import Apply, Case, Chain, assert_same_function

NET = Case(
    "net",
    lambda: Chain(
        c=nn.Conv2d(4, 8, 3, padding=1),
        n=nn.BatchNorm2d(8),
        t=nn.ConvTranspose2d(8, 4, 2, stride=2),
        f=nn.Flatten(),
        l=nn.Linear(4 * 8 * 8, 6),
    ),
    (2, 4, 4, 4),
)
SIZES = {"c.weight": 288, "t.weight": 128, "l.weight": 1536}


def program_of(case: Case = NET) -> Program:
    return capture(case.model(), case.example())


@pytest.mark.parametrize("saliency", ["magnitude", "random"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.875])
def test_global_masks_zero_exactly_the_share(ratio: float, saliency: str) -> None:
    program = program_of()
    plan = plan_sparsity(program, Sparsify(ratio, saliency=saliency))
    assert set(plan.masks) == set(SIZES)
    assert plan.zeroed == round(ratio * sum(SIZES.values()))
    result = ApplyMasks(plan).run(program).program
    assert [item.nonzero for item in densities(result) if item.name in SIZES] == [
        int(mask.sum()) for mask in plan.masks.values()
    ]


def test_global_masks_keep_the_largest_of_all() -> None:
    program = program_of()
    plan = plan_sparsity(program, Sparsify(0.5))
    kept, gone = [], []
    for name, mask in plan.masks.items():
        weight = walk.tensor(program, name).detach().abs()
        kept.append(weight[mask])
        gone.append(weight[~mask])
    assert float(torch.cat(gone).max()) <= float(torch.cat(kept).min())
    assert len({round(plan.density(name), 3) for name in plan.masks}) > 1


def test_local_masks_zero_the_same_share_of_each() -> None:
    plan = plan_sparsity(program_of(), Sparsify(0.25, scope="local"))
    assert {name: int((~mask).sum()) for name, mask in plan.masks.items()} == {
        name: size // 4 for name, size in SIZES.items()
    }


def test_random_masks_follow_the_seed() -> None:
    program = program_of()
    first, second, third = (
        plan_sparsity(program, Sparsify(0.5, saliency="random", seed=seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first.masks[name], second.masks[name]) for name in first.masks)
    assert not all(torch.equal(first.masks[name], third.masks[name]) for name in first.masks)


@pytest.mark.parametrize(("pattern", "kept", "group"), [("2:4", 2, 4), ("1:4", 1, 4), ("1:2", 1, 2)])
def test_patterns_run_along_the_dimension_that_is_summed_over(pattern: str, kept: int, group: int) -> None:
    """The rows of a transposed convolution, the columns of a linear, the input channels of a convolution."""
    program = program_of()
    plan = plan_sparsity(program, Sparsify(pattern=pattern))
    for name, dim in {"c.weight": 1, "t.weight": 0, "l.weight": 1}.items():
        mask, weight = plan.masks[name].movedim(dim, -1), walk.tensor(program, name).detach().movedim(dim, -1)
        blocks, values = mask.reshape(-1, group), weight.abs().reshape(-1, group)
        assert bool((blocks.sum(-1) == kept).all())
        least = torch.where(blocks, values, torch.inf).amin(-1)
        most = torch.where(blocks, 0.0, values).amax(-1)
        assert bool((least >= most).all())


def test_a_matrix_product_is_summed_over_its_rows() -> None:
    model = Apply(lambda m, x: x @ m.w, w=torch.randn(8, 6))
    plan = plan_sparsity(capture(model.eval(), torch.randn(2, 8)), Sparsify(pattern="2:4"))
    assert bool((plan.masks["w"].reshape(2, 4, 6).sum(1) == 2).all())


def test_what_does_not_fit_stays_dense_with_its_reason() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner = nn.Embedding(8, 4), nn.Linear(4, 4)
            self.odd = nn.Linear(4, 6, bias=False)
            self.last = nn.Linear(6, 4)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.last(self.odd(self.inner(self.table(ids))))
            return x @ self.table.weight.T

    program = capture(Tied().eval(), torch.tensor([[1, 2, 3], [3, 4, 5]]))
    plan = plan_sparsity(program, Sparsify(pattern="2:4"))
    assert sorted(plan.masks) == ["inner.weight", "odd.weight"]
    assert "embedding" in plan.declined["table.weight"]
    assert plan.declined["last.weight"] == "6 inputs are no multiple of 4"
    assert {item.site for item in ApplyMasks(plan).run(program).declined} == {"table.weight", "last.weight"}


def test_listing_stays_and_the_function_is_that_of_zeroed_weights() -> None:
    """The pass changes no operator; in float64 the result equals the model with the same weights zeroed."""
    model = NET.model().double()
    example = NET.example().double()
    program = capture(model, example)
    before = str(program)
    plan = plan_sparsity(program, Sparsify(0.5))
    outcome = ApplyMasks(plan).run(program)
    well_formed(outcome.program)
    assert str(outcome.program).splitlines()[: len(before.splitlines())] == before.splitlines()
    assert outcome.changed[0].startswith("c.weight: 288 -> ")
    assert density(program) == 1.0
    with torch.no_grad():
        for name, mask in plan.masks.items():
            model.get_parameter(name).mul_(mask)
    assert_same_function(capture(model, example), outcome.program, 0.0)
    assert cost(outcome.program) == cost(program)


def test_masks_of_another_program_are_refused() -> None:
    plan = plan_sparsity(program_of(), Sparsify(0.5))
    other = capture(Chain(c=nn.Conv2d(4, 6, 3), f=nn.Flatten()).eval(), torch.randn(2, 4, 4, 4))
    with pytest.raises(InputError, match="c.weight has shape"):
        ApplyMasks(plan).run(other)


def test_zeros_that_are_there_change_nothing() -> None:
    program = program_of()
    plan = plan_sparsity(program, Sparsify(0.5))
    once = ApplyMasks(plan).run(program).program
    assert ApplyMasks(plan).run(once).program is once


def test_masks_within_masks_keep_every_zero() -> None:
    for options in (Sparsify(), Sparsify(scope="local"), Sparsify(saliency="random")):
        program, plan, zeroed = program_of(), None, []
        for share in (0.2, 0.5, 0.9):
            earlier = plan
            plan = plan_sparsity(
                program, Sparsify(share, scope=options.scope, saliency=options.saliency), within=plan
            )
            if earlier is not None:
                assert not any(bool((plan.masks[name] & ~earlier.masks[name]).any()) for name in plan.masks)
            zeroed.append(plan.zeroed)
        assert all(a < b for a, b in pairwise(zeroed))


def test_names_are_chosen_by_pattern() -> None:
    program = program_of()
    assert set(plan_sparsity(program, Sparsify(layers=("c.*", "l.*"))).masks) == {"c.weight", "l.weight"}
    assert set(plan_sparsity(program, Sparsify(protect=("l.*",))).masks) == {"c.weight", "t.weight"}
    for wrong in (Sparsify(layers=("z*",)), Sparsify(protect=("z*",))):
        with pytest.raises(InputError, match="matches no parameter"):
            plan_sparsity(program, wrong)
    with pytest.raises(InputError, match="no weight"):
        plan_sparsity(program, Sparsify(layers=("n.*",)))


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = NET.model()
    with torch.no_grad():
        model.get_parameter("t.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"t\.weight holds a NaN"):
        plan_sparsity(capture(model, NET.example()), Sparsify())


WRONG = [
    {"ratio": 0.0},
    {"ratio": 1.0},
    {"pattern": "4:4"},
    {"pattern": "0:4"},
    {"pattern": "half"},
    {"pattern": "2:4", "ratio": 0.7},
    {"scope": "everywhere"},
    {"saliency": "guess"},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_options_check_themselves(options) -> None:
    with pytest.raises(InputError):
        Sparsify(**options)


def test_a_plan_is_data() -> None:
    plan = plan_sparsity(program_of(), Sparsify(0.4))
    again = SparsityPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.total == plan.total
    assert all(torch.equal(again.masks[name], mask) for name, mask in plan.masks.items())
    for broken in ({}, {"masks": {"w": {"shape": [3, 3], "bits": "AA=="}}, "declined": {}, "total": 1}):
        with pytest.raises(InputError, match="not a sparsity plan"):
            SparsityPlan.from_dict(broken)


def test_a_sparse_file_is_as_large_as_a_dense_one_and_says_so() -> None:
    """Pain 10, sparseml#2164: a "sparse" file that is not smaller.

    The file does not shrink by a byte and the program says so where a user reads it; compressed, it does.
    """
    program = program_of()
    plan = plan_sparsity(program, Sparsify(0.9))
    sparse = ApplyMasks(plan).run(program).program
    files = [lower(item).SerializeToString() for item in (program, sparse)]
    assert abs(len(files[0]) - len(files[1])) <= 64
    assert gzip_bytes(files[1]) < 0.5 * gzip_bytes(files[0])
    assert STATEMENT in sparse.notes
    assert "no smaller" in STATEMENT
    assert STATEMENT in str(plan)

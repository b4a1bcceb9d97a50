"""Compensation: planted redundancy is recovered exactly, and where nothing can be gained nothing changes.

Torch-Pruning's users meet accuracy near zero after pruning and no recovery: TP#147, TP#87, TP#296.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.analysis import gram, refit
from fxcompress.analysis.groups import analyse
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.apply_masks import ApplyMasks
from fxcompress.passes.compensate import Compensate, Compensated
from fxcompress.passes.loosening import loosened
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.masking import plan_sparsity
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from fxcompress.plan.sparsity import Sparsify
from tests.passes.models import Apply, Chain
from tests.passes.packed import Packed, timm


def captured(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float64) -> Program:
    return capture(model.eval().to(dtype), (noise(0, *shape).to(dtype),))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(count: int, *shape: int) -> list[Tensor]:
    return [noise(seed + 1, *shape) for seed in range(count)]


def halved(program: Program) -> tuple[PruningPlan, Program]:
    """The first half of every group stays."""
    analysis = analyse(program)
    plan = make_plan(analysis, {group.name: tuple(range(group.size // 2)) for group in analysis.groups})
    return plan, PruneChannels(plan).run(program).program


def compensated(program: Program, batches: list[Tensor], **options: int) -> tuple[Program, Compensated]:
    plan, pruned = halved(program)
    return pruned, Compensate(program, plan, batches, **options).run(pruned)


def loss(program: Program, other: Program, x: Tensor) -> float:
    """Squared difference of the outputs as a share of their variance."""
    with torch.no_grad():
        wanted, found = program.module(x), other.module(x)
    return float((wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum())


def doubled(layer: nn.Module) -> None:
    """The second half of the outputs repeats the first, scaled."""
    half = len(layer.weight) // 2
    with torch.no_grad():
        layer.weight[half:] = 2.0 * layer.weight[:half]
        if layer.bias is not None:
            layer.bias[half:] = 2.0 * layer.bias[:half]


class Redundant(nn.Module):
    """Convolutions, one of them transposed, and a linear; half of all hidden channels repeat the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1)
        self.third = nn.Conv2d(8, 8, 3, 2, padding=1)
        self.head = nn.Linear(8, 3)
        for layer in (self.first, self.third):
            doubled(layer)
        with torch.no_grad():
            self.second.weight[:, 4:] = 2.0 * self.second.weight[:, :4]
            self.second.bias[4:] = 2.0 * self.second.bias[:4]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.third(F.relu(self.second(F.relu(self.first(x))))))
        return self.head(y.mean((2, 3)))


def test_channels_that_repeat_others_cost_nothing() -> None:
    program = captured(Redundant(), 4, 2, 6, 6)
    pruned, outcome = compensated(program, data(12, 16, 2, 6, 6))
    x = noise(99, 20, 2, 6, 6)
    assert loss(program, pruned, x) > 0.1
    assert loss(program, outcome.program, x) < 1e-4
    assert outcome.after < 1e-4 < outcome.before
    assert {line.split(":")[0] for line in outcome.changed} == {"conv_transpose2d", "conv2d_1", "linear"}
    well_formed(outcome.program)


def test_a_linear_map_is_recovered_but_for_the_damping() -> None:
    """Tokens through two linears without anything between: four of eight inputs span the rest."""
    model = Chain(a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    program = captured(model, 2, 5, 3)
    pruned, outcome = compensated(program, data(8, 16, 5, 3))
    assert loss(program, pruned, noise(99, 8, 5, 3)) > 0.1
    assert loss(program, outcome.program, noise(99, 8, 5, 3)) < 1e-6


def test_residual_sums_make_up_for_earlier_errors() -> None:
    """The sum is compared, not the branch: what an earlier block lost comes back later in the stream."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 4, 1, bias=False)
            self.norm = nn.BatchNorm1d(4)
            self.c, self.d = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.norm(self.b(F.relu(self.a(x))))
            return (x + self.d(F.relu(self.c(x)))).flatten(1) * 1.0

    program = captured(Blocks(), 3, 4, 5)
    analysis = analyse(program)
    inner = {g.name: tuple(range(4)) for g in analysis.groups if g.name in ("a.weight[0]", "c.weight[0]")}
    plan = make_plan(analysis, inner)
    pruned = PruneChannels(plan).run(program).program
    outcome = Compensate(program, plan, data(8, 32, 4, 5)).run(pruned)
    assert outcome.after < 0.6 * outcome.before
    targets = {line.split(":")[0]: line.rsplit(" ", 1)[1] for line in outcome.changed}
    assert targets["conv1d_1"] == "add"
    assert targets["conv1d_3"] == "add_1"
    mean = walk.tensor(outcome.program, "norm.running_mean")
    assert not torch.equal(
        mean, walk.tensor(pruned, "norm.running_mean")
    )  # the constant of a layer without bias
    assert torch.equal(walk.tensor(outcome.program, "norm.weight"), walk.tensor(pruned, "norm.weight"))


def test_the_programs_given_stay_as_they_were() -> None:
    program = captured(Redundant(), 4, 2, 6, 6)
    plan, pruned = halved(program)
    before = [{k: v.clone() for k, v in p.module.state_dict().items()} for p in (program, pruned)]
    Compensate(program, plan, data(5, 8, 2, 6, 6)).run(pruned)
    for held, given in zip(before, (program, pruned), strict=True):
        assert all(torch.equal(held[name], value) for name, value in given.module.state_dict().items())


def test_it_is_deterministic_and_keeps_dtypes() -> None:
    program = captured(Redundant(), 4, 2, 6, 6, dtype=torch.float32)
    batches = [batch.float() for batch in data(5, 8, 2, 6, 6)]
    first, second = (compensated(program, batches)[1].program.module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {value.dtype for value in first.values()} == {torch.float32}


def reasons(outcome: Compensated) -> dict[str, str]:
    return {site.site: site.reason for site in outcome.declined}


def test_weights_that_a_mask_zeroed_stay_zero() -> None:
    dense = captured(Redundant(), 4, 2, 6, 6)
    program = ApplyMasks(plan_sparsity(dense, Sparsify(ratio=0.1))).run(dense).program
    pruned, outcome = compensated(program, data(12, 16, 2, 6, 6))
    assert outcome.changed
    assert outcome.after < outcome.before
    after = dict(outcome.program.module.named_parameters())
    for name, weight in pruned.module.named_parameters():
        if weight.dim() > 1:
            assert not after[name][weight == 0].any()


def test_a_shared_weight_is_declined() -> None:
    """Two readers see different inputs: one weight cannot serve both fits."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(F.relu(self.a(x)))
            return self.c(self.b(F.relu(x)))

    torch.manual_seed(0)
    program = captured(Twice(), 4, 4)
    _, outcome = compensated(program, data(8, 32, 4))
    assert reasons(outcome)["linear_1"] == "its weight is shared (also used by linear_2)"
    assert outcome.after < outcome.before


def test_a_computed_weight_is_declined() -> None:
    torch.manual_seed(0)
    model = Apply(
        lambda self, x: F.linear(F.relu(F.linear(x, torch.tanh(self.a))), torch.tanh(self.b)),
        a=torch.randn(8, 4),
        b=torch.randn(3, 8),
    )
    program = captured(model, 4, 4)
    pruned, outcome = compensated(program, data(5, 16, 4))
    assert set(reasons(outcome)) == {"linear", "linear_1", "the outputs"}
    assert reasons(outcome)["linear_1"] == "its weight is computed, not stored"
    assert outcome.program is pruned
    assert outcome.before == outcome.after > 0


def test_a_layer_of_stored_inputs_is_declined() -> None:
    """What a table of positions goes through does not depend on the data."""
    torch.manual_seed(0)
    model = Apply(
        lambda self, x: self.c(F.relu(self.a(x)) + self.b(self.table)),
        a=nn.Linear(4, 8),
        b=nn.Linear(5, 8),
        c=nn.Linear(8, 2),
        table=torch.randn(3, 5),
    )
    program = captured(model, 4, 3, 4)
    _, outcome = compensated(program, data(8, 16, 3, 4))
    assert reasons(outcome)["linear_1"] == "its input is stored: it says nothing about the data"
    assert outcome.after < outcome.before


@pytest.mark.parametrize("largest", [8, refit.LARGEST])
def test_layers_with_too_many_unknowns_are_left_alone(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight are still solved; twelve are not, nor two groups of six, and the reason says so."""
    monkeypatch.setattr(refit, "LARGEST", largest)
    torch.manual_seed(0)
    model = Chain(
        a=nn.Conv1d(4, 24, 1), r=nn.ReLU(), b=nn.Conv1d(24, 48, 1), s=nn.ReLU(),
        c=nn.Conv1d(48, 32, 1, groups=4), t=nn.ReLU(), d=nn.Conv1d(32, 2, 1),
    )  # fmt: skip
    program = captured(model, 4, 4, 5)
    pruned, outcome = compensated(program, data(8, 32, 4, 5))
    too_many = {
        "conv1d_1": "it has 12 unknowns per output in 1 group(s); at most 8 are solved",
        "conv1d_2": "it has 6 unknowns per output in 2 group(s); at most 8 are solved",
    }
    found = {site: reason for site, reason in reasons(outcome).items() if "unknowns" in reason}
    assert found == (too_many if largest == 8 else {})
    assert "conv1d_3" in {line.split(":")[0] for line in outcome.changed}
    for name in ("b.weight", "c.weight"):
        same = torch.equal(walk.tensor(outcome.program, name), walk.tensor(pruned, name))
        assert same == (largest == 8)
    assert outcome.after < outcome.before


def test_grouped_and_depthwise_layers_are_fitted_group_by_group() -> None:
    torch.manual_seed(0)
    model = Chain(
        a=nn.Conv2d(3, 16, 1), r=nn.ReLU(), b=nn.Conv2d(16, 16, 3, padding=1, groups=4),
        s=nn.ReLU(), c=nn.Conv2d(16, 16, 3, padding=1, groups=16), t=nn.ReLU(), d=nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    program = captured(model, 4, 3, 6, 6)
    _, outcome = compensated(program, data(8, 16, 3, 6, 6))
    assert outcome.after < 0.8 * outcome.before
    assert {line.split(":")[0] for line in outcome.changed} >= {"conv2d_1", "conv2d_3"}


def test_one_static_sample_leaves_nothing_to_judge_by() -> None:
    program = capture(Redundant().double(), (noise(0, 1, 2, 6, 6),), dynamic_shapes=None)
    _, outcome = compensated(program, [noise(1, 1, 2, 6, 6)])
    assert "nothing is left to judge a correction by" in reasons(outcome)["the outputs"]
    assert outcome.changed == ()


def test_few_samples_never_make_it_worse_on_those_kept_back() -> None:
    """Two fitted samples for dozens of unknowns."""
    program = captured(Redundant(), 4, 2, 6, 6)
    _, outcome = compensated(program, [noise(5, 3, 2, 6, 6)])
    assert outcome.used == 3
    assert outcome.judged == 1
    assert outcome.after <= outcome.before


def test_outputs_that_would_drift_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that is better at every layer and worse at the outputs is taken back as a whole."""
    program = captured(Redundant(), 4, 2, 6, 6)
    plan, pruned = halved(program)
    errors = iter([0.5, 0.7])
    monkeypatch.setattr(gram.SideBySide, "output_error", lambda self: next(errors))
    outcome = Compensate(program, plan, data(5, 8, 2, 6, 6)).run(pruned)
    assert outcome.program is pruned
    assert outcome.changed == ()
    assert reasons(outcome)["the outputs"] == (
        "compensation is left out: on samples that no fit saw, the squared error of the outputs would go "
        "from 0.5 of their variance to 0.7"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_with_the_batch(bad: float) -> None:
    program = captured(Redundant(), 4, 2, 6, 6)
    batches = data(5, 8, 2, 6, 6)
    batches[3][0, 0, 0, 0] = bad
    with pytest.raises(InputError, match="batch 3"):
        compensated(program, batches)


def test_a_layer_that_overflows_is_refused_with_its_line() -> None:
    model = Chain(a=nn.Linear(2, 4), e=Apply(lambda self, x: torch.exp(x * 1e4)), b=nn.Linear(4, 2))
    torch.manual_seed(0)
    program = captured(model, 4, 2)
    with pytest.raises(InputError, match=r"linear_1.*NaN or an infinity"):
        compensated(program, data(5, 8, 2))


def test_what_is_held_does_not_grow_with_the_data() -> None:
    """Samples beyond the memory are not even read."""
    program = captured(Redundant(), 4, 2, 6, 6)
    read: list[int] = []

    class Endless:
        def __iter__(self) -> object:
            for seed in range(1000):
                read.append(seed)
                yield noise(seed, 8, 2, 6, 6)

    plan, pruned = halved(program)
    outcome = Compensate(program, plan, Endless(), memory=2**20).run(pruned)
    assert 8 <= outcome.used < 200
    assert len(read) < 30
    assert outcome.after < outcome.before


def test_positions_are_sampled_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "PLACES", 9)
    program = captured(Redundant(), 4, 2, 6, 6)
    _, outcome = compensated(program, data(12, 16, 2, 6, 6))
    assert outcome.after < 1e-3


def test_dynamic_batches_are_cut_so_that_one_batch_suffices() -> None:
    program = captured(Redundant(), 4, 2, 6, 6)
    _, outcome = compensated(program, [noise(1, 50, 2, 6, 6)])
    assert outcome.used == 50
    assert (outcome.judged, outcome.reported, outcome.apart) == (7, 7, True)
    assert outcome.after < 0.1 * outcome.before


def test_products_of_activations_have_nothing_to_refit() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

    program = captured(Attend(), 3, 5, 6)
    _, outcome = compensated(program, data(8, 16, 5, 6))
    assert "scaled_dot_product_attention" not in {*reasons(outcome), *outcome.changed}
    assert any(line.startswith("linear_3") for line in outcome.changed)
    assert outcome.after < outcome.before


def test_the_original_is_rewritten_as_the_plan_was() -> None:
    """A packed linear is split before analysis; its parts are compared with the parts of the original."""

    torch.manual_seed(0)
    program = captured(Packed(timm), 4, 6, 16)
    analysis = analyse(loosened(program, ("split-packed-linears",)))
    plan = make_plan(analysis, {group.name: tuple(range(group.size // 2)) for group in analysis.groups})
    assert plan.rewrites == ("split-packed-linears",)
    pruned = PruneChannels(plan).run(program).program
    outcome = Compensate(program, plan, data(8, 32, 6, 16)).run(pruned)
    assert outcome.after < outcome.before
    assert not [site for site in outcome.declined if site.reason == "the original has no such layer"]


def test_zeros_of_the_user_stay() -> None:
    """A weight that was sparsified before it came here is corrected where it is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    with torch.no_grad():
        model[2].weight.mul_(torch.rand(24, 32) > 0.8)
    data = [torch.randn(64, 12) for _ in range(3)]
    result = fxcompress.optimize(model, data[0], prune=fxcompress.Prune(0.3, block=1), calibration=data)
    weight = result.trainable.module.get_parameter("2.weight")
    assert float((weight == 0).double().mean()) > 0.7


def test_a_branch_that_zeros_switch_off_stays_off() -> None:
    """No weight of it may change, and a constant would be all that it gives."""

    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.off = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 4)
            for parameter in self.off.parameters():
                nn.init.zeros_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            return self.b(y) + self.off(y)

    program = captured(Branched(), 4, 6)
    _, outcome = compensated(program, data(8, 32, 6))
    assert outcome.after < outcome.before
    assert not walk.tensor(outcome.program, "off.weight").any()
    assert not walk.tensor(outcome.program, "off.bias").any()

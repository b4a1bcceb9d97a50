"""What users of other pruners live with, one test per complaint, named by repository and issue number.

TP is VainF/Torch-Pruning, TN alibaba/TinyNeuralNetwork, INC intel/neural-compressor, MCT SonySemiconductor's
model_optimization; the models are ours, small, and do what the reports describe.
"""

from __future__ import annotations

import cProfile
import pstats
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.analysis_time import program_of
from fxcompress.analysis.groups import analyse
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower
from fxcompress.passes.compensate import Compensate
from fxcompress.passes.loosening import LOOSEN
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.proof.masked import masked_equivalence
from tests.architectures.randomise import randomise


def prune(
    model: nn.Module | Program, *example: Tensor, **options: Any
) -> tuple[Program, Program, PruningPlan]:
    """A model pruned with a plain call, proven; the original, the pruned program and the plan."""
    torch.manual_seed(0)
    original = model if isinstance(model, Program) else capture(randomise(model, 0, example), example)
    loose = Journal().apply_all(LOOSEN, original)
    plan = plan_pruning(analyse(loose), Prune(**options), 1)
    pruned = PruneChannels(plan).run(loose).program
    masked_equivalence(original, pruned, plan)
    return original, pruned, plan


class ViewBetween(nn.Module):
    """A linear whose outputs a view reads as an image; a transposed convolution takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 8 * 4)
        self.up, self.last = nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ConvTranspose2d(6, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.linear(x)).view(-1, 8, 2, 2)
        return self.last(F.relu(self.up(x)))


class FlattenAndBack(nn.Module):
    """Channels flattened with their positions for a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.fc(x.view(x.size(0), -1))


class ToThreeDimensions(nn.Module):
    """A reshape of features to sequences, in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(10, 24), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.relu(self.inner(F.relu(self.before(x)).reshape(-1, 4, 6)))).mean(1)


class Shuffled(nn.Module):
    """ShuffleNet's unit: split, one branch, concatenate, shuffle by view, transpose, view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail, self.fc = nn.Conv2d(16, 12, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([kept, F.relu(self.branch(worked))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.fc(F.relu(self.tail(x)).mean((2, 3)))


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 3, 1))


def glu() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(6, 24, 3, padding=1), nn.GLU(1), nn.Conv1d(12, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)
    )


IMAGE = (2, 3, 6, 6)


@pytest.mark.parametrize(
    ("build", "shape", "made"),
    [
        pytest.param(FlattenAndBack, IMAGE, "conv", id="TP57-flatten"),
        pytest.param(ViewBetween, (2, 12), "linear", id="TP125-view-to-transposed-convolution"),
        pytest.param(glu, (2, 6, 10), "0", id="TP366-glu"),
        pytest.param(pixel_shuffle, IMAGE, "0", id="TP98-pixel-shuffle"),
        pytest.param(Shuffled, IMAGE, "stem", id="TP45-channel-shuffle"),
        pytest.param(ToThreeDimensions, (2, 10), "before", id="TN65-reshape-to-three-dimensions"),
    ],
)
def test_pain_1_reshapes_shuffles_and_gates_do_not_crash(
    build: Any, shape: tuple[int, ...], made: str
) -> None:
    """TP#57 TP#125 TP#366 TP#98 TP#45 TN#65: the pruned net crashes on a reshape, a shuffle or a gate.

    The channels that go are those that the operator reads, made by the layer named.
    """
    original, pruned, plan = prune(build(), torch.randn(shape), ratio=0.4)
    assert plan.after.macs <= 0.6 * plan.before.macs
    wide, narrow = (len(walk.tensor(program, f"{made}.weight")) for program in (original, pruned))
    assert narrow < wide
    assert pruned(torch.randn(3, *shape[1:])).shape == original(torch.randn(3, *shape[1:])).shape


class Attention(nn.Module):
    """Self-attention as people write it: the number of heads and their width are Python constants."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim, self.all_head_size = heads, width // heads, width
        self.inside = nn.Linear(6, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.last = nn.Linear(width, width), nn.Linear(width, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.heads, self.head_dim).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inside(x))
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        weights = torch.softmax(q @ k.transpose(-1, -2) / self.head_dim**0.5, -1)
        context = (weights @ v).permute(0, 2, 1, 3).contiguous()
        return self.last(x + self.out(context.view(*context.size()[:-2], self.all_head_size)))


@pytest.mark.parametrize("factors", ["outer", "inner"])
def test_pain_2_heads_and_their_constants_need_no_patching(factors: str) -> None:
    """TP#101 TP#287 TP#340 TP#393 INC#525: num_heads and all_head_size must be patched after pruning."""
    options = {"ratio": 0.3, "factors": factors, "protect": ("inside.*",)}
    _, pruned, plan = prune(Attention(), torch.randn(2, 5, 6), **options)
    assert 0 < len(walk.tensor(pruned, "query.weight")) < 16
    assert plan.after.macs <= 0.7 * plan.before.macs
    assert pruned(torch.randn(3, 5, 6)).shape == (3, 5, 3)


def three_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
        nn.Conv2d(64, 4, 1),
    )  # fmt: skip


def widths_of(pruned: Program) -> dict[str, int]:
    """By group name, how many channels the convolutions that are not the last have left."""
    return {f"{place}.weight[0]": len(walk.tensor(pruned, f"{place}.weight")) for place in (0, 2, 4)}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.6, 0.8, 0.9])
def test_pain_3_widths_are_aligned_but_for_one_that_meets_the_budget(ratio: float) -> None:
    """TP#38 TP#149 TP#382: latency rises at odd widths. At these ratios one suffices; the plan says which."""
    _, pruned, plan = prune(three_convolutions(), torch.randn(2, 3, 8, 8), ratio=ratio, block=8)
    assert plan.after.macs <= (1 - ratio) * plan.before.macs
    widths = widths_of(pruned)
    odd = {name for name, width in widths.items() if width % 8}
    assert odd == set(plan.relaxed)
    assert len(odd) <= 1
    assert min(widths.values()) > 0


@pytest.mark.parametrize(
    ("share", "widths", "relaxed"),
    [
        (0.2, (12, 48, 48), {"0.weight[0]": 4}),
        (0.3, (12, 48, 48), {"0.weight[0]": 4}),
        (0.45, (8, 32, 32), {}),
        (0.6, (8, 24, 24), {}),
    ],
)
def test_pain_3_shares_are_aligned_to_the_nearest_and_never_to_nothing(
    share: float, widths: tuple[int, int, int], relaxed: dict[str, int]
) -> None:
    """TP#38 TP#97: round_to floors, or prunes nothing silently. Where 8s are far off, 4s."""
    _, pruned, plan = prune(three_convolutions(), torch.randn(2, 3, 8, 8), ratios={"*": share}, block=8)
    assert tuple(widths_of(pruned).values()) == widths
    assert plan.relaxed == relaxed


def test_pain_10_a_pruned_file_is_smaller() -> None:
    """MCT#960 MCT#273: the "compressed" file has the size of the original."""
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    original, pruned, plan = prune(net, torch.randn(2, 64), ratio=0.6)
    sizes = [len(lower(program).SerializeToString()) for program in (original, pruned)]
    assert sizes[1] < 0.5 * sizes[0]
    assert abs(sizes[1] - plan.after.bytes) < 0.1 * sizes[1]


FRESH = """
import sys
import torch
import fxcompress
from fxcompress.analysis.groups import analyse
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.prune import Prune
from fxcompress.proof.masked import masked_equivalence

program = fxcompress.load(sys.argv[1])
assert "tests.test_pains" not in sys.modules
x = torch.load(sys.argv[2], weights_only=True)
torch.testing.assert_close(program(x["input"]), x["output"])

program.train()
optimizer = torch.optim.SGD(program.module.parameters(), 0.01)
before = program(x["input"]).square().mean()
before.backward()
optimizer.step()
assert program(x["input"]).square().mean() < before
program.eval()

plan = plan_pruning(analyse(program), Prune(ratio=0.3), 1)
again = PruneChannels(plan).run(program).program
masked_equivalence(program, again, plan)
assert plan.after.macs <= 0.7 * plan.before.macs
again.save(sys.argv[1])
print("pruned again")
"""


def test_pain_11_a_pruned_model_lives_without_its_class(tmp_path: Path) -> None:
    """TP#436 ultralytics#3507: a pruned model can only be pickled whole, and needs its class to come back."""
    x = torch.randn(4, 5, 6)
    _, pruned, _ = prune(Attention(), x, ratio=0.3)
    pruned.save(tmp_path / "pruned.fxc")
    with torch.no_grad():
        torch.save({"input": x, "output": pruned(x)}, tmp_path / "data.pt")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "pruned.fxc"), str(tmp_path / "data.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "pruned again\n", done.stderr


def test_pain_14_removal_is_followed_by_recovery_without_training() -> None:
    """TP#147 TP#87 TP#296: accuracy is near zero after pruning, and nothing is offered against it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    data = [torch.randn(64, 8) for _ in range(8)]
    original = capture(net, data[0])
    original, pruned, plan = prune(original, ratio=0.5)
    refitted = Compensate(original, plan, data).run(pruned).program
    held_out = torch.randn(512, 8)
    with torch.no_grad():
        lost, left = (
            (program(held_out) - original(held_out)).square().mean().item() for program in (pruned, refitted)
        )
    assert left < 0.5 * lost


class Recurrent(nn.Module):
    """A recurrent layer between an embedding of the inputs and a reader of its last state."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.inside, self.rnn = nn.Linear(6, 10), kind(10, 12, batch_first=True, **options)
        self.out = nn.Linear(24 if options.get("bidirectional") else 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(torch.tanh(self.inside(x)))[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {}), (nn.LSTM, {"bidirectional": True}), (nn.GRU, {"num_layers": 2}), (nn.RNN, {})],
)
def test_pain_17_recurrent_layers_are_pruned(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    """TP#44: pruning an LSTM has been broken since 2021."""
    model = Recurrent(kind, **options)
    _, pruned, plan = prune(model, torch.randn(2, 5, 6), ratio=0.4)
    assert plan.after.macs <= 0.6 * plan.before.macs
    assert len(walk.tensor(pruned, "rnn.weight_hh_l0")) < len(model.rnn.weight_hh_l0)


def calls(program: Program) -> int:
    """How many function calls an analysis makes: a clock that nothing disturbs."""
    profile = cProfile.Profile()
    profile.runcall(analyse, program)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["residual", "dense", "transformer"])
def test_pain_18_analysis_grows_linearly_with_the_graph(family: str) -> None:
    """TP#474 TP#527: large graphs hang the dependency builder, ten hours in one report."""
    small, large = program_of(family, 150), program_of(family, 900)
    growth = calls(large) / calls(small)
    assert growth < 1.15 * len(large.graph.nodes) / len(small.graph.nodes)

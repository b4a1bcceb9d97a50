"""A pruned program is an ordinary module: it trains, it is saved without its class, and is pruned again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxcompress.analysis.cost import cost
from fxcompress.analysis.groups import analyse
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.proof.masked import masked_equivalence
from tests.recovery.models import data, example, net, train


def halved(program: Program) -> Program:
    plan = plan_pruning(analyse(program), Prune(0.5, block=1), 1)
    pruned = PruneChannels(plan).run(program).program
    masked_equivalence(program, pruned, plan)
    return pruned


@pytest.fixture(scope="module")
def pruned() -> Program:
    return halved(capture(net(), example())).copy(share=False)


def test_the_pruned_module_trains_with_batch_norm_and_dropout(pruned: Program) -> None:
    program = pruned.copy(share=False).train()
    statistics = {n: b.clone() for n, b in program.module.named_buffers() if n.endswith("running_mean")}
    assert all(parameter.requires_grad for parameter in program.module.parameters())
    losses = train(program.module, 40)
    assert losses[-1] < 0.3 * losses[0]
    assert statistics
    assert all(not torch.equal(program.module.get_buffer(name), old) for name, old in statistics.items())
    program.eval()
    well_formed(program)
    images, labels = data(seed=2)
    with torch.no_grad():
        assert torch.equal(program(images), program(images))
        assert float((program(images).argmax(1) == labels).float().mean()) > 0.9
        assert not torch.equal(program(images), program.train()(images))


def test_training_one_program_leaves_the_other(pruned: Program) -> None:
    before = {name: tensor.clone() for name, tensor in pruned.module.state_dict().items()}
    train(pruned.copy(share=False).train(), 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.module.state_dict().items())


def test_names_are_those_of_the_model(pruned: Program) -> None:
    """A pruned checkpoint is read by the user's names."""
    assert set(dict(pruned.module.named_parameters())) == set(dict(net().named_parameters()))


FRESH = """
import sys
import torch
from fxcompress.analysis.cost import cost
from fxcompress.analysis.groups import analyse
from fxcompress.graph.archive import load
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.proof.masked import masked_equivalence

torch.set_num_threads(1)
program, expected = load(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
assert not any("tests" in name.split(".")[0] for name in sys.modules)
assert torch.equal(program(expected["x"]), expected["y"])
optimizer = torch.optim.SGD(program.train().module.parameters(), 0.05, momentum=0.9)
losses = []
for _ in range(15):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(program(expected["images"]), expected["labels"])
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))
assert losses[-1] < losses[0], losses
program.eval()
plan = plan_pruning(analyse(program), Prune(0.5, block=1), 1)
again = PruneChannels(plan).run(program).program
masked_equivalence(program, again, plan)
again.save(sys.argv[3])
print(cost(again).macs / cost(program).macs)
"""


@pytest.mark.slow
def test_pain_11_a_fresh_process_loads_trains_and_prunes_again(pruned: Program, tmp_path: Path) -> None:
    """TP#436, ultralytics#3507: a pruned model could only be saved by pickling its class."""
    images, labels = data()
    x = torch.randn(3, 1, 6, 6)
    with torch.no_grad():
        torch.save({"x": x, "y": pruned(x), "images": images, "labels": labels}, tmp_path / "expected.pt")
    pruned.save(tmp_path / "pruned.fxc")
    paths = [str(tmp_path / name) for name in ("pruned.fxc", "expected.pt", "again.fxc")]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *paths],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.4 < float(done.stdout) <= 0.5
    again = load(tmp_path / "again.fxc")
    well_formed(again)
    assert cost(again).params < cost(pruned).params
    assert not again.training


def test_a_loaded_program_is_pruned_like_the_one_saved(pruned: Program, tmp_path: Path) -> None:
    pruned.save(tmp_path / "pruned.fxc")
    ours, theirs = halved(pruned), halved(load(tmp_path / "pruned.fxc"))
    assert cost(ours) == cost(theirs)
    x = torch.randn(3, 1, 6, 6)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_a_state_dict_is_that_of_any_module(pruned: Program, tmp_path: Path) -> None:
    trained = pruned.copy(share=False)
    train(trained.train(), 3)
    torch.save(trained.module.state_dict(), tmp_path / "weights.pt")
    other = pruned.copy(share=False)
    other.module.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(3, 1, 6, 6)
    with torch.no_grad():
        assert torch.equal(other(x), trained.eval()(x))
    assert isinstance(other.module, nn.Module)

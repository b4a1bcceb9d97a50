"""Plans as data: printed, edited, saved, and applied later in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.errors import InputError
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.loosening import LOOSEN
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from tests.architectures.programs import call
from tests.passes import packed
from tests.passes.test_prune_channels import Tied


@cache
def user() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), packed.Packed(packed.timm), nn.Linear(16, 4)).eval()
    return capture(model, torch.randn(3, 6, 16))


@cache
def analysed() -> Analysis:
    program = user()
    for stage in LOOSEN:
        program = stage.run(program).program
    return analyse(program)


def plan() -> PruningPlan:
    return make_plan(
        analysed(),
        {"1.qkv.weight_2[0]:1": (0, 2, 4), "0.weight[0]": tuple(range(12))},
        protected={"1.qkv.weight[0][0:16]:1": "as an example"},
        relaxed={"0.weight[0]": 4},
    )


def test_a_plan_prints_its_groups_and_what_was_rewritten() -> None:
    assert str(plan()).splitlines()[1:] == [
        "  1.qkv.weight[0][32:48]:1: 8 -> 3",
        "  0.weight[0]: 16 -> 12  (multiple of 4)",
        "  1.qkv.weight[0][0:16]:1: whole, as an example",
        "  made after split-packed-linears",
    ]


def test_a_plan_is_edited_group_by_group() -> None:
    """A group named by any member gets another choice, another joins, and one is left whole."""
    edited = plan().with_channels(
        analysed(), {"1.out.weight[1]:1": range(1, 8, 2), "1.qkv.weight_0[0]:1": [0, 1], "0.weight[0]": None}
    )
    assert edited.channels == {"1.qkv.weight[0][32:48]:1": (1, 3, 5, 7), "1.qkv.weight[0][0:16]:1": (0, 1)}
    assert edited.protected == {}
    assert edited.relaxed == {}
    assert edited.kept["1.qkv.weight"] == make_plan(analysed(), edited.channels).kept["1.qkv.weight"]
    assert edited.before == plan().before
    assert edited.after.macs != plan().after.macs


def test_what_an_edit_does_not_touch_stays() -> None:
    edited = plan().with_channels(analysed(), {})
    assert edited == plan()


@pytest.mark.parametrize("channels", [{"1.qkv.weight_2[0]:1": [8]}, {"nothing": [0]}, {"0.weight[0]": []}])
def test_an_impossible_edit_is_refused(channels: dict[str, list[int]]) -> None:
    with pytest.raises(InputError):
        plan().with_channels(analysed(), channels)


def test_a_saved_plan_loads_equal(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan()
    assert json.loads((tmp_path / "plan.json").read_text())["rewrites"] == ["split-packed-linears"]


def test_the_plan_of_a_result_loads(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"pruning": plan().to_dict(), "precision": {}}))
    assert PruningPlan.load(tmp_path / "plan.json") == plan()


def test_a_plan_from_before_rewrites_loads() -> None:
    """Files of the first release say nothing of rewrites and copies."""
    data = plan().to_dict()
    del data["rewrites"], data["copies"]
    assert PruningPlan.from_dict(data).rewrites == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "plan.json is not JSON"),
        ("[1, 2]", "plan.json is not a pruning plan"),
        ('{"pruning": null}', "plan.json prunes nothing"),
        ('{"channels": {"a": [0]}}', "not a pruning plan"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "plan.json is not JSON"),
    ],
)
def test_other_files_are_no_plans(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        PruningPlan.load(tmp_path / "plan.json")


def test_missing_and_unwritable_paths_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        PruningPlan.load(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be written"):
        plan().save(tmp_path / "missing" / "plan.json")


def test_an_unknown_rewrite_is_refused() -> None:
    data = plan().to_dict()
    data["rewrites"] = ["unroll-loops"]
    with pytest.raises(InputError, match="'unroll-loops'.*not known"):
        PruneChannels(PruningPlan.from_dict(data)).run(analysed().program)


APPLY = """
import sys, torch
from fxcompress.graph.archive import load
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import PruningPlan
folder = sys.argv[1]
plan = PruningPlan.load(folder + "/plan.json")
PruneChannels(plan).run(load(folder + "/user.fxc")).program.save(folder + "/pruned.fxc")
"""


def test_a_plan_is_applied_later_in_another_process(tmp_path: Path) -> None:
    """To the user's own program, which it rewrites first."""
    user().save(tmp_path / "user.fxc")
    plan().save(tmp_path / "plan.json")
    subprocess.run([sys.executable, "-c", APPLY, str(tmp_path)], check=True)
    inputs = (torch.randn(2, 6, 16),)
    here, there = PruneChannels(plan()).run(user()).program, load(tmp_path / "pruned.fxc")
    assert torch.equal(call(here, inputs)[0], call(there, inputs)[0])
    assert there.origins == here.origins


def test_every_name_of_a_tied_tensor_is_listed() -> None:
    """A classifier that is the embedding: both names are cut, and the plan says so."""
    program = capture(Tied().eval(), (torch.tensor([[1, 2, 3], [4, 5, 6]]),))
    tied = make_plan(analyse(program), {"table.weight[1]": (0, 1, 5)})
    assert tied.kept["head.weight"] == tied.kept["table.weight"] == {1: (0, 1, 5)}
    pruned = PruneChannels(tied).run(program).program
    state = pruned.module.state_dict()
    for name, dims in tied.kept.items():
        for dim, stay in dims.items():
            assert state[name].shape[dim] == len(stay)


def test_prices_in_a_file_are_not_believed() -> None:
    data = plan().to_dict()
    data["before"]["macs"], data["after"]["macs"] = 7, 1
    assert PruningPlan.from_dict(data).priced(analysed()) == plan()


def test_channels_edited_by_hand_are_refused_with_the_way_to_edit() -> None:
    data = plan().to_dict()
    data["channels"]["0.weight[0]"] = [0, 1]
    with pytest.raises(InputError, match=r"`kept`") as raised:
        PruneChannels(PruningPlan.from_dict(data)).run(user())
    assert "with_channels" in str(raised.value.hint)


@pytest.mark.parametrize("rewrites", ["split-packed-linears", [1], 3])
def test_rewrites_are_a_list_of_names(rewrites: object) -> None:
    """A text was read letter by letter."""
    with pytest.raises(InputError, match="not a pruning plan"):
        PruningPlan.from_dict({**plan().to_dict(), "rewrites": rewrites})

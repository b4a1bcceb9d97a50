"""Origins: what is kept of parts is what is kept of the user's tensor; copies speak for themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import InputError
from fxcompress.graph.archive import load
from fxcompress.graph.origins import Origin, Origins
from tests.graph.archives import entries, rewrite
from tests.passes.test_copy_shared_tables import scaled

PARTS = Origins(
    ("split",),
    {
        "w_0": Origin("w", 0, (0, 1, 4, 5)),
        "w_1": Origin("w", 0, (2, 3, 6, 7)),
        "t_0": Origin("t"),
        "t_1": Origin("t"),
    },
)


def test_parts_are_laid_back_and_copies_listed_apart() -> None:
    own = {"w_1": {0: (1, 2), 1: (0, 2)}, "w_0": {1: (0, 2)}, "t_0": {0: (1,)}, "other": {0: (3,)}}
    kept, copies = PARTS.stated(own)
    assert kept == {"w": {0: (0, 1, 3, 4, 5, 6), 1: (0, 2)}, "other": {0: (3,)}}
    assert copies == {"t_0": {0: (1,)}}


def test_a_dimension_that_stays_whole_is_not_listed() -> None:
    own = {"w_0": {1: (0,)}, "w_1": {1: (0,)}}
    assert PARTS.stated(own) == ({"w": {1: (0,)}}, {})


@st.composite
def choices(draw: st.DrawFn) -> dict[str, dict[int, tuple[int, ...]]]:
    """What is kept of each part, at least one position and not all of them."""
    chosen = {}
    for name in ("w_0", "w_1"):
        stay = draw(st.sets(st.integers(0, 3), min_size=1))
        if len(stay) < 4:
            chosen[name] = {0: tuple(sorted(stay))}
    return chosen


@given(choices())
def test_back_again(own: dict[str, dict[int, tuple[int, ...]]]) -> None:
    kept, copies = PARTS.stated(own)
    assert {name: PARTS.own(name, kept, copies) for name in own} == own


@given(choices())
def test_after_pruning_positions_count_what_is_left(own: dict[str, dict[int, tuple[int, ...]]]) -> None:
    """Cutting the user's tensor and then a part out of it, or the part and then cutting it: the same rows."""
    tensor = torch.arange(8)
    kept, _ = PARTS.stated(own)
    left = tensor[list(kept.get("w", {}).get(0, range(8)))]
    for name in ("w_0", "w_1"):
        part = tensor[list(PARTS.tensors[name].positions)]
        cut = part[list(own.get(name, {}).get(0, range(4)))]
        assert torch.equal(left[list(PARTS.after(own).tensors[name].positions)], cut)


def test_origins_compose() -> None:
    """A part of a part is a part of the user's tensor; a copy of a part is a copy of it."""
    twice = PARTS.adding(
        "again", {"a": Origin("w_1", 0, (3, 0)), "b": Origin("w_0"), "c": Origin("t_1", 0, (1,))}
    )
    assert twice.rewrites == ("split", "again")
    assert twice.tensors["a"] == Origin("w", 0, (7, 2))
    assert twice.tensors["b"] == Origin("w")
    assert twice.tensors["c"] == Origin("t")
    assert [twice.user(name) for name in ("a", "t_0", "other")] == ["w", "t", "other"]


def loosened_archive(folder: Path) -> Path:
    program = scaled().copy()
    program.origins = Origins(
        ("copy",), {"table": Origin("user.table", 0, tuple(range(8))), "gone": Origin("x")}
    )
    program.save(folder / "program.fxc")
    return folder / "program.fxc"


def test_an_archive_keeps_the_origins_of_the_tensors_it_has(tmp_path: Path) -> None:
    loaded = load(loosened_archive(tmp_path))
    assert loaded.origins == Origins(("copy",), {"table": Origin("user.table", 0, tuple(range(8)))})


def test_an_archive_without_origins_loads(tmp_path: Path) -> None:
    """Files of the first release have none."""
    path = loosened_archive(tmp_path)
    document = json.loads(entries(path)["program.json"])
    del document["origins"], document["rewrites"]
    older = rewrite(path, {"program.json": json.dumps(document).encode()})
    assert load(older).origins == Origins()


@pytest.mark.parametrize(
    "record",
    [
        ["table", "t", 0, [0, 1]],
        ["table", "t", 1, [0]],
        ["table", "t", 0, "01234567"],
        ["table", "a b'c", None, []],
        ["missing", "t", None, []],
        ["table", "t"],
        [0, "t", None, []],
    ],
)
def test_damaged_origins_are_refused(record: list[object], tmp_path: Path) -> None:
    path = loosened_archive(tmp_path)
    document = json.loads(entries(path)["program.json"])
    document["origins"] = [record]
    damaged = rewrite(path, {"program.json": json.dumps(document).encode()})
    with pytest.raises(InputError):
        load(damaged)


@pytest.mark.parametrize(
    ("positions", "title"),
    [
        ((4, 5, 6, 7), "[4:8]"),
        ((1, 4, 7), "[1::3]"),
        ((2, 3, 8, 9, 14, 15), "[2:4 of every 6]"),
        ((0, 1, 5, 9), "[0:2 and 2 more ranges]"),
    ],
)
def test_parts_are_titled_by_their_positions(positions: tuple[int, ...], title: str) -> None:
    origins = Origins().adding("split", {"w_0": Origin("w", 0, positions), "t_0": Origin("t")})
    assert origins.title("w_0", 0) == f"w[0]{title}"
    assert (origins.title("w_0", 1), origins.title("t_0", 0), origins.title("v", 2)) == (
        "w[1]",
        "t_0[0]",
        "v[2]",
    )

"""Lines of keys, against texts that hide them: long strings, arrays over lines, quoted and dotted keys."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.recipes.positions import Path, positions

TRICKY = '''
# [[pass]] in a comment
text = """
[[pass]]
not = "a key" \\""" still inside
"""
raw = \'\'\'
[table]
x = 1\'\'\'
list = [ # a comment with ]
  "[[pass]]", { a = "]" },
  3,
]

[[pass]]
name = "first" # = 3
"quoted.key" . 'other' = 1

[pass.ratios]
"layer1.*" = 0.5

[[pass]]
budget.macs = "50%"
inline = { deep = { deeper = 1 } }
[[pass.inner]]
x = 1
[[pass.inner]]
x = 2
[other.table]
y = 1
'''


def test_keys_are_found_where_they_stand() -> None:
    found = positions(TRICKY)
    lines = TRICKY.splitlines()
    expected: dict[Path, str] = {
        ("text",): "text = ",
        ("raw",): "raw = ",
        ("list",): "list = ",
        ("pass", 0): "[[pass]]",
        ("pass", 0, "name"): "name = ",
        ("pass", 0, "quoted.key", "other"): '"quoted.key"',
        ("pass", 0, "ratios"): "[pass.ratios]",
        ("pass", 0, "ratios", "layer1.*"): '"layer1.*"',
        ("pass", 1, "budget", "macs"): "budget.macs",
        ("pass", 1, "inline", "deep", "deeper"): "inline",
        ("pass", 1, "inner", 0, "x"): "x = 1",
        ("pass", 1, "inner", 1, "x"): "x = 2",
        ("other", "table", "y"): "y = 1",
    }
    for path, start in expected.items():
        assert lines[found.line(path) - 1].startswith(start), path
    assert lines[found.line(("pass", 1)) - 2] == ""
    assert found.line(("nowhere",)) == 1
    tomllib.loads(TRICKY)  # the text is what tomllib reads too


def paths(value: Any, path: Path = ()) -> list[Path]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in [(*path, key), *paths(item, (*path, key))]]
    return []


KEYS = st.sampled_from(["a", "b-1", '"q k"', "'='", '"["', "c.d"])
VALUES = st.sampled_from(["1", '"]"', "[1, [2]]", '{ x = "}" }', '"""a\n[b]\n\\"""c"""', "[\n 1, # ]\n 2\n]"])


@given(st.lists(st.tuples(KEYS, VALUES), unique_by=lambda item: item[0], max_size=6))
def test_every_key_of_a_random_text_is_on_its_line(items: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in items)
    found, line = positions(text), 1
    for key, value in items:
        (path,) = [path for path in paths(tomllib.loads(f"{key} = 1")) if path[-1] != "c"]
        assert found.line(path) == line
        line += 1 + value.count("\n")


@pytest.mark.parametrize("text", ["", "\n\n# nothing\n"])
def test_texts_without_keys(text: str) -> None:
    assert positions(text).lines == {}

"""On which line of a TOML text each key stands; `tomllib` reads values and forgets where they were."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Keys and indices from the root to a value: `("pass", 0, "ratio")`."""

_PART = r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[A-Za-z0-9_-]+"
_KEY = re.compile(rf"\s*(?:{_PART})(?:\s*\.\s*(?:{_PART}))*\s*")
_PARTS = re.compile(_PART)
_STEP = re.compile(
    r"\"\"\"|'''|\"(?:[^\"\\]|\\.)*\"|'[^']*'|#.*|[\[{]|[\]}]",
)
_ENDS = {'"""': re.compile(r"(?:[^\\]|\\.)*?\"\"\"\"{0,2}"), "'''": re.compile(r".*?''''{0,2}")}


@dataclass(frozen=True)
class Positions:
    """Line numbers, from 1, of the keys and table headers of a text that `tomllib` accepts."""

    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """The line of a value, else of the nearest thing around it; 1 for the whole text."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def positions(text: str) -> Positions:
    """Find the lines of all keys outside of inline tables and arrays, whose members count as the whole."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    depth, inside = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        if not depth and not inside:
            header = re.match(r"\s*(\[\[?)", line)
            if header is not None:
                keys = _keys(line[header.end() :])
                table = _resolved(keys, counts, array=header[1] == "[[")
                lines.setdefault(table, number)
                continue
            match = _KEY.match(line)
            if match is None or line[match.end() : match.end() + 1] != "=":
                continue  # a comment or nothing
            lines.setdefault((*table, *_keys(match[0])), number)
            rest = line[match.end() + 1 :]
        depth, inside = _after(rest, depth, inside)
    return Positions(lines)


def _keys(text: str) -> list[str]:
    """The parts of a dotted key at the start of a text, unquoted."""
    match = _KEY.match(text)
    parts = _PARTS.findall(match[0]) if match is not None else []
    return [str(tomllib.loads(f"k = {part}")["k"]) if part[0] in "\"'" else part for part in parts]


def _resolved(keys: Sequence[str], counts: dict[Path, int], *, array: bool) -> Path:
    """The path of a header: keys of arrays of tables stand for their last element."""
    path: Path = ()
    for place, key in enumerate(keys):
        path = (*path, key)
        if array and place == len(keys) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _after(text: str, depth: int, inside: str) -> tuple[int, str]:
    """How deep in brackets, and in which long string, a value is at the end of a line."""
    while text:
        if inside:
            end = _ENDS[inside].match(text)
            if end is None:
                return depth, inside
            text, inside = text[end.end() :], ""
            continue
        step = _STEP.search(text)
        if step is None:
            break
        text = text[step.end() :]
        if step[0] in _ENDS:
            inside = step[0]
        elif step[0] in "[{":
            depth += 1
        elif step[0] in "]}":
            depth -= 1
    return depth, inside

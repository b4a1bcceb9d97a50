"""The architecture, enforced: who may import whom, no cycle, no hidden import, only re-exports in __init__.

The imports are read from the source, so that the test sees what a reader sees. Imports under TYPE_CHECKING
count like any other: two files that need each other's types are one file or need a third.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS: dict[str, int] = {
    "version": 1,
    "errors": 1,
    "numerics": 2,
    "axes": 3,
    "graph": 4,
    "ops": 5,
    "runtime": 6,
    "lowering": 7,
    "targets": 8,
    "analysis": 9,
    "plan": 10,
    "passes": 11,
    "proof": 12,
    "measure": 13,
    "pipeline": 13,
    "recipes": 13,
    "recovery": 14,
    "report": 15,
    "api": 15,
    "cli": 15,
}
# Rows of the design's table that say less than "every layer above". The runtime's timings are samples, and
# what makes an interval of samples is a pure function on arrays: it may import numerics.
NARROW: dict[str, set[str]] = {
    "axes": {"version", "errors"},
    "graph": {"version", "errors"},
    "ops": {"version", "errors", "axes", "graph"},
    "runtime": {"version", "errors", "numerics"},
    # lowering negotiates with the runtime, and loads and runs what it wrote: runtime stands above it.
    "lowering": {"version", "errors", "graph", "ops", "runtime"},
    "targets": {"version", "errors", "ops", "runtime"},
}
# Files that adapt an optional dependency: the only ones whose functions may import.
ADAPTERS: frozenset[str] = frozenset({"fxcompress.runtime.openvino"})
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_LINES = 400


@dataclass(frozen=True)
class Source:
    """One file of the package under its import name."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def area(self) -> str:
        """The folder or top-level file below the package root; empty for the root itself."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


@cache
def read(root: Path) -> dict[str, Source]:
    """Every file of fxcompress/ and passes/, keyed by import name; the link is not walked twice."""
    files = [(path, path.relative_to(root)) for path in (root / "fxcompress").rglob("*.py")]
    files += [(path, Path("fxcompress") / path.relative_to(root)) for path in (root / "passes").rglob("*.py")]
    found = {}
    for path, relative in files:
        if (root / "fxcompress" / "passes") in path.parents:
            continue
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Source(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Names of this package that a file imports, as files where they are files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.split(".")[0] in {"fxcompress", "passes"}
            )
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level or module.split(".")[0] in {"fxcompress", "passes"}:
                for alias in node.names:
                    full = f"{module}.{alias.name}"
                    yield full if full in known else "." * node.level + module


def layer_faults(sources: dict[str, Source]) -> Iterator[str]:
    """Imports that go down or sideways, of the root, of `passes` by its folder name, or relative."""
    for source in sources.values():
        if source.area and source.area not in LAYERS:
            yield f"{source.name}: {source.area} is in no layer"
            continue
        for target in imported(source.tree, set(sources)):
            if target.startswith(".") or target.split(".")[0] == "passes":
                yield f"{source.name}: imports {target}; write fxcompress.…"
            elif source.area and target == "fxcompress":
                yield f"{source.name}: imports the package root"
            elif source.area and not may_import(source.area, target.split(".")[1]):
                yield f"{source.name}: layer {LAYERS[source.area]} imports {target}"


def may_import(area: str, target: str) -> bool:
    """Whether a file of `area` may import from `target`."""
    if area == target:
        return True
    if area in NARROW:
        return target in NARROW[area]
    same_level = LAYERS.get(target) == LAYERS[area]
    return LAYERS.get(target, 99) < LAYERS[area] or (same_level and LAYERS[area] in {13, 15})


def cycle_faults(sources: dict[str, Source]) -> Iterator[str]:
    """Files that import each other, however long the way round."""
    edges = nx.DiGraph()
    for source in sources.values():
        edges.add_edges_from((source.name, target) for target in imported(source.tree, set(sources)))
    yield from ("cycle: " + " -> ".join(cycle) for cycle in nx.simple_cycles(edges))


def hidden_import_faults(sources: dict[str, Source]) -> Iterator[str]:
    """Imports inside a function, outside the adapters."""
    for source in sources.values():
        for function in ast.walk(source.tree):
            if source.name in ADAPTERS or not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield f"{source.name}:{node.lineno}: import inside {function.name}"


def adapter_faults(sources: dict[str, Source]) -> Iterator[str]:
    """Optional packages asked for outside their adapters."""
    for source in sources.values():
        for node in ast.walk(source.tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if called == "optional" and source.name not in ADAPTERS:
                yield f"{source.name}:{node.lineno}: asks for an optional package; adapters do"


def name_faults(sources: dict[str, Source]) -> Iterator[str]:
    """Names that say nothing, and a module named like a function its package re-exports."""
    for source in sources.values():
        if VAGUE_NAMES & set(source.name.split(".")):
            yield f"{source.name}: say what it is about"
        if source.path.name == "__init__.py":
            for node in source.tree.body:
                if isinstance(node, ast.ImportFrom):
                    clash = {alias.asname or alias.name for alias in node.names} & {
                        name.rsplit(".", 1)[1] for name in sources if name.rpartition(".")[0] == source.name
                    }
                    clash -= {alias.name for alias in node.names if f"{node.module}.{alias.name}" in sources}
                    yield from (f"{source.name}: {name} is a module and a re-exported name" for name in clash)


def init_faults(sources: dict[str, Source]) -> Iterator[str]:
    """An __init__ that does more than name and re-export."""
    for source in sources.values():
        if source.path.name != "__init__.py":
            continue
        for node in source.tree.body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            exports = isinstance(node, ast.Assign) and all(
                isinstance(target, ast.Name) and target.id in {"__all__", "__version__"}
                for target in node.targets
            )
            if not (docstring or exports or isinstance(node, ast.Import | ast.ImportFrom)):
                yield f"{source.name}: __init__ holds code on line {node.lineno}"


def size_faults(sources: dict[str, Source]) -> Iterator[str]:
    """Files that have grown past what one reads in a sitting."""
    for source in sources.values():
        lines = len(source.path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            yield f"{source.name}: {lines} lines, at most {MAX_LINES}"


CHECKS = [
    *(layer_faults, cycle_faults, hidden_import_faults, adapter_faults),
    *(name_faults, init_faults, size_faults),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_package_keeps_the_architecture(check) -> None:
    assert list(check(read(ROOT))) == []


def test_every_area_is_read() -> None:
    sources = read(ROOT)
    folders = {path.parent.name for path in (ROOT / "fxcompress").glob("*/__init__.py")}
    assert folders <= {source.area for source in sources.values()}
    assert "fxcompress.passes.contract" in sources


def test_passes_load_once() -> None:
    code = (
        "import sys, fxcompress.passes, fxcompress.passes.contract; "
        "assert 'passes' not in sys.modules; assert 'passes.contract' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_passes_are_linked() -> None:
    link = ROOT / "fxcompress" / "passes"
    assert link.is_symlink()
    assert str(link.readlink()) == "../passes"


BAD_FILES = {
    "axes/algebra.py": "from fxcompress.graph.program import Program\n",
    "graph/program.py": "import fxcompress\n",
    "graph/first.py": "from fxcompress.graph.second import b\n",
    "graph/second.py": "import typing\nif typing.TYPE_CHECKING:\n    from fxcompress.graph import first\n",
    "graph/late.py": "def f():\n    import json\n    return json\n",
    "graph/relative.py": "from . import program\n",
    "runtime/timing.py": "from fxcompress.ops.cost import macs\n",
    "plan/helpers.py": "x = 1\n",
    "plan/solver.py": "x = optional('highspy', 'fast')\n",
    "plan/__init__.py": "x = [1]\n",
    "ops/__init__.py": "from fxcompress.ops.cost import cost\n",
    "ops/cost.py": "from passes.contract import Pass\n" + "\n" * 400,
    "wizard/spell.py": "",
}
EXPECTED = {
    layer_faults: {
        "fxcompress.axes.algebra: layer 3 imports fxcompress.graph.program",
        "fxcompress.graph.program: imports the package root",
        "fxcompress.graph.relative: imports .; write fxcompress.…",
        "fxcompress.runtime.timing: layer 6 imports fxcompress.ops.cost",
        "fxcompress.ops.cost: imports passes.contract; write fxcompress.…",
        "fxcompress.wizard.spell: wizard is in no layer",
    },
    hidden_import_faults: {"fxcompress.graph.late:2: import inside f"},
    adapter_faults: {"fxcompress.plan.solver:1: asks for an optional package; adapters do"},
    name_faults: {
        "fxcompress.plan.helpers: say what it is about",
        "fxcompress.ops: cost is a module and a re-exported name",
    },
    init_faults: {"fxcompress.plan: __init__ holds code on line 1"},
    size_faults: {"fxcompress.ops.cost: 401 lines, at most 400"},
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_checks_find_each_fault_of_a_bad_tree(check, tmp_path) -> None:
    for name, text in BAD_FILES.items():
        path = tmp_path / "fxcompress" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "passes").mkdir()
    found = set(check(read(tmp_path)))
    if check is cycle_faults:  # networkx may start the cycle at either file
        assert len(found) == 1
        assert {"fxcompress.graph.first", "fxcompress.graph.second"} <= set(next(iter(found)).split())
    else:
        assert found == EXPECTED[check]

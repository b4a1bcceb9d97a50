"""What a figure was measured with: the commit of this project and the versions of the packages."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "onnxruntime", "transformers", "nncf", "openvino", "torch-pruning")
HERE = Path(__file__).parents[1]
MEASURED = ("fxcompress", "passes", "benchmarks", "examples", "constraints.txt")
"""What figures depend on: the page that a run writes is not among it."""


def stamped(*more: str) -> str:
    """One line: commit (and whether files differ from it), versions, and what else belongs to it."""
    return ", ".join((f"fxcompress {_commit()}", *_versions(), *more))


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return version("fxcompress")
    return f"{commit}, changed since" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found

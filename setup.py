"""Build check: the passes live at the top level and reach the package through a symbolic link.

Everything else is in pyproject.toml. A zip download or a checkout with core.symlinks=false turns the link
into a small text file; setuptools would then build a package without its passes, so the build stops here.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup

LINK = Path(__file__).resolve().parent / "fxcompress" / "passes"

if not (LINK / "__init__.py").is_file():
    raise SystemExit(
        "fxcompress cannot be built from this copy: fxcompress/passes must be a symbolic link to "
        "../passes (an sdist holds the folder itself), and this archive dropped it. "
        "Use `git clone` with core.symlinks=true, or restore it: "
        "rm -f fxcompress/passes && ln -s ../passes fxcompress/passes"
    )

setup()

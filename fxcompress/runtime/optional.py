"""The one door to packages that fxcompress can use but does not need."""

from __future__ import annotations

import importlib
from types import ModuleType

from fxcompress.errors import NotSupported


def optional(module: str, extra: str) -> ModuleType:
    """Import a package that an extra installs; only the adapter of that package calls this.

    Raises:
        NotSupported: it is not installed, or is broken; the hint names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotSupported(
            f"{module} cannot be imported: {error}", hint=f"pip install 'fxcompress[{extra}]'"
        ) from error

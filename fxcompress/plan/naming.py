"""What users call the stored tensors of a program: names, tied names, module types."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from functools import cached_property

from fxcompress.analysis.groups import Analysis
from fxcompress.graph import walk
from fxcompress.graph.module import tied


class Names:
    """What the user calls the stored tensors of a program, and the types of the modules that hold them."""

    def __init__(self, analysis: Analysis) -> None:
        self.program, self.groups = analysis.program, analysis.groups

    @cached_property
    def aliases(self) -> dict[str, frozenset[str]]:
        """By stored tensor, all its names, and that of the user's tensor which it is a part or copy of."""
        shared = {name: names for names in tied(self.program.module).values() for name in names}
        return {name: frozenset((*names, self.program.origins.user(name))) for name, names in shared.items()}

    @cached_property
    def types(self) -> dict[str, str]:
        """By module path, the module's type as `package.module.Name`."""
        return walk.module_types(self.program)

    def matching(self, pattern: str) -> frozenset[str]:
        """The stored tensors that have a name which the pattern matches."""
        return frozenset(
            name
            for name, names in self.aliases.items()
            if any(fnmatch.fnmatchcase(n, pattern) for n in names)
        )

    def inside(self, is_type: Callable[[str], bool]) -> frozenset[str]:
        """The stored tensors that a module of such a type holds, itself or in one of its children."""
        paths = [path for path, kind in self.types.items() if is_type(kind)]
        return frozenset(
            name
            for name, names in self.aliases.items()
            if any(not path or n.startswith(f"{path}.") for path in paths for n in names)
        )

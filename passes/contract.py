"""What a pass is: a frozen dataclass with a name, options as fields, and ``run(program) -> Outcome``.

A pass holds no state and no policy. It leaves the program it is given untouched, and says what it changed
and which sites it declined, with the reason: a refusal is data that a user can read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from fxcompress.graph import edit
from fxcompress.graph.program import Program


@dataclass(frozen=True)
class Decline:
    """A site that a pass looked at and left alone.

    ``site`` is the node's name, ``source`` the user's line (``model.py:12: x = self.bn(x)``) where known.
    """

    site: str
    reason: str
    source: str | None = None

    def __str__(self) -> str:
        where = f" [{self.source}]" if self.source else ""
        return f"{self.site}: {self.reason}{where}"


@dataclass(frozen=True)
class Outcome:
    """The program after a pass, one line per change (``bn1 into conv1``) and the sites it declined.

    A pass that changed nothing returns the program it was given, the same object.
    """

    program: Program
    changed: tuple[str, ...]
    declined: tuple[Decline, ...] = ()


def outcome(
    program: Program, edited: Program, changed: Iterable[str], declined: Iterable[Decline] = ()
) -> Outcome:
    """What a pass returns: the copy that it edited, tidied and inferred again, or the program it was given
    where nothing changed.
    """
    lines, left = tuple(changed), tuple(declined)
    if not lines:
        return Outcome(program, (), left)
    edit.tidy(edited)
    edit.reinfer(edited)
    return Outcome(edited, lines, left)


NOTHING_TO_JUDGE_BY = (
    "all calibration data is one sample (or one static batch): nothing is left to judge a correction by"
)
"""Why a correction that would be fitted is not even tried."""


def worse(what: str, before: float, after: float) -> str:
    """Why a correction that was fitted is not kept; both errors as a share of the outputs' variance."""
    return (
        f"{what} is left out: on samples that no fit saw, the squared error of the outputs would go "
        f"from {before:.3g} of their variance to {after:.3g}"
    )


class Pass(Protocol):
    """One edit of a program. Implementations are frozen dataclasses; their fields are their options."""

    @property
    def name(self) -> str:
        """The spelling in recipes, logs and on the command line, such as ``fuse-batch-norm``."""

    def run(self, program: Program) -> Outcome:
        """Return the edited copy; the program given stays as it was."""

"""The errors a user can meet: each says what was found, where, and what to do about it.

An error carries, beside its message, a *hint* (what to do), the *node* it concerns (one line of the graph)
and the *source* line of the user's model that made the node. Context is added on the way up with `note`,
never by wrapping one exception's text in another's.
"""

from __future__ import annotations

from typing import Self


class CompressError(Exception):
    """Base of every error that fxcompress raises on purpose.

    Args:
        message: what was found and what was expected, in one or two sentences.
        hint: what the reader can do about it.
        node: an excerpt of the graph around the fault, usually one printed node.
        source: the user's line, as `file.py:12: code`.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, node: str | None = None, source: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.node = node
        self.source = source
        self.context: list[str] = []

    def note(self, text: str) -> Self:
        """Add a line of context, such as the pass that was running, and return the error for re-raising."""
        self.context.append(text)
        return self

    def __str__(self) -> str:
        lines = [self.message]
        if self.node is not None:
            lines.append(f"  node: {self.node}")
        if self.source is not None:
            lines.append(f"  source: {self.source}")
        lines.extend(f"  note: {text}" for text in self.context)
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class CaptureError(CompressError):
    """The model cannot be turned into a graph, for example because its control flow depends on data."""


class InputError(CompressError):
    """Something the caller passed is wrong: example inputs, calibration data, a ratio, a path, a file."""


class UnsafeFile(InputError):
    """A file could run code when it is opened, and the caller did not say `trust=True`."""


class BudgetError(InputError):
    """A budget cannot be reached; the message states the reachable minimum."""


class NotSupported(CompressError):
    """A mode that is not built; the message says which ones are."""


class IllFormed(CompressError):
    """A graph breaks an invariant of the canonical form; raised by the checks between passes."""


class LoweringError(CompressError):
    """A program cannot be written as an ONNX file that the installed runtime accepts."""


class ProofError(CompressError):
    """A rewritten model does not compute what it must; nothing is returned."""


def first_line(error: BaseException) -> str:
    """The first line of a foreign exception, at most 500 characters; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]

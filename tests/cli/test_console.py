"""Progress: on stderr, a line per step with its time, ticking on a terminal and plain elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from fxcompress.cli.console import Steps


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run_steps() -> None:
    with Steps() as step:
        step("capture")
        step("prune")


def test_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run_steps()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split("  ")[0] for line in captured.err.splitlines()] == ["capture", "prune"]
    assert all(line.endswith(" s") for line in captured.err.splitlines())


def test_live_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    run_steps()
    shown = stream.getvalue()
    assert "\x1b" in shown
    assert "capture" in shown
    assert "prune" in shown
    assert "0.0 s" in shown


def test_the_step_that_fails_is_told_and_the_error_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        with Steps() as step:
            step("capture")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert capsys.readouterr().err.startswith("capture  ")

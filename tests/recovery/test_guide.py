"""The guide on pruning in rounds runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "gradual_pruning.md"


def test_the_guide_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    scope: dict[str, object] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, GUIDE.name, "exec"), scope)
    shown = capsys.readouterr().out
    assert "dense kernels run no faster" in shown
    assert "influence" in shown
    history = scope["result"].history  # type: ignore[attr-defined]
    assert 0.48 <= history[-1] <= 0.5
    assert scope["sparse"].history[-1] == pytest.approx(0.8, abs=1e-3)  # type: ignore[attr-defined]
    plan = scope["shorter"].plan  # type: ignore[attr-defined]
    assert len(plan.removed) == 1
    assert plan.after.macs <= 0.7 * plan.before.macs

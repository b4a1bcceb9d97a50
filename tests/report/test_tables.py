"""Tables fit the terminal, carry no escape codes where there is none, and show what the report says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fxcompress.report import tables, units
from fxcompress.report.report import DeclinedSite, FrozenEntry, PassEntry, Report, Side
from tests.report.test_report import FULL


def render(view: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_overview_fits_and_has_no_escape_codes(width: int) -> None:
    text = render(tables.overview(FULL), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    for word in (
        "0.500x",
        "1.00 k",
        "fuse",
        "shared weight",
        "m.py:1",
        "static batch",
        "int8 (chosen)",
        "9 of 10",
    ):
        assert word in text, word


def test_numbers_are_never_cut_at_eighty_columns() -> None:
    before = Side(25_557_032, 4_089_184_256, 102_228_128, 123.456, throughput=8.1, peak_memory=512 << 20)
    text = render(tables.summary(Report(before=before, after=before)))
    assert "…" not in text
    for word in ("25.56 M", "4.09 G", "97.49 MiB", "123 ms", "512.00 MiB"):
        assert word in text, word


def test_reasons_are_counted_and_a_single_site_is_named() -> None:
    sites = [DeclinedSite("a", "shared"), DeclinedSite("b", "shared"), DeclinedSite("c", "training mode")]
    assert tables.reasons(sites) == "2 x shared\nc: training mode"


def test_frozen_lists_the_first_and_counts_the_rest() -> None:
    entries = [
        FrozenEntry(f"t{i}", i, "no rule", "net.py:3: y", "foo_1", 1000 * i) for i in reversed(range(1, 31))
    ]
    text = render(tables.frozen(entries, rows=5), 120)
    for word in ("t30", "30.00 k", "no rule (foo_1)", "net.py:3"):
        assert word in text, word
    assert "and 25 more" in text
    assert "t25" not in text


def test_empty_pass_entry_shows_its_time() -> None:
    report = Report(before=Side(), after=Side(), passes=(PassEntry("capture", 0.123),))
    assert "0.12" in render(tables.passes(report))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.count(None), "-"),
        (units.count(999), "999"),
        (units.count(25_557_032), "25.56 M"),
        (units.size(512), "512 B"),
        (units.size(1_572_864), "1.50 MiB"),
        (units.milliseconds(0.012345), "0.0123 ms"),
        (units.milliseconds(1.2345), "1.23 ms"),
        (units.milliseconds(12345.6), "12346 ms"),
        (units.seconds(125), "2 min 05 s"),
        (units.seconds(59.94), "59.9 s"),
        (units.significant(0), "0"),
        (units.significant(-0.5), "-0.500"),
        (units.significant(1e-7), "1.00e-07"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected


def test_candidates_show_time_and_error() -> None:
    """What was lost stands beside what was gained."""
    text = render(tables.candidates(FULL), 120)
    row = next(line for line in text.splitlines() if "int8 (chosen)" in line)
    assert "1.00 ms" in row or "1.000 ms" in row
    assert "0.0325" in row

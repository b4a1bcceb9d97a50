"""Numbers as people read them: counts, sizes, times and ratios, each in at most nine columns."""

from __future__ import annotations

from collections.abc import Callable

Form = Callable[[float | None], str]

_COUNT_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SIZE_UNITS = ((1024.0**3, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB"))
ABSENT = "-"


def count(value: float | None) -> str:
    """`25_560_000` becomes `25.56 M`; below a thousand the number itself."""
    if value is None:
        return ABSENT
    for unit, name in _COUNT_UNITS:
        if abs(value) >= unit:
            return f"{value / unit:.2f} {name}"
    return f"{value:g}"


def size(value: float | None) -> str:
    """Bytes in binary units: `1_572_864` becomes `1.50 MiB`."""
    if value is None:
        return ABSENT
    for unit, name in _SIZE_UNITS:
        if abs(value) >= unit:
            return f"{value / unit:.2f} {name}"
    return f"{value:.0f} B"


def milliseconds(value: float | None) -> str:
    """Three significant digits: `0.0123 ms`, `1.23 ms`, `123 ms`."""
    return ABSENT if value is None else f"{significant(value)} ms"


def seconds(value: float | None) -> str:
    """`0.05 s`, `12.3 s`, `2 min 05 s`."""
    if value is None:
        return ABSENT
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def per_second(value: float | None) -> str:
    """Samples per second."""
    return ABSENT if value is None else f"{significant(value)} /s"


def share(part: float, whole: float) -> str:
    """A part of a whole as `93.5 %`."""
    return f"{100 * part / whole:.1f} %" if whole else ABSENT


def ratio(value: float | None) -> str:
    """After over before: `0.500x`."""
    return ABSENT if value is None else f"{value:.3f}x"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent between 1e-4 and 1e6."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude < 1e-4 or magnitude >= 1e6:
        return f"{value:.{digits - 1}e}"
    whole_digits = len(str(int(magnitude))) if magnitude >= 1 else 0
    leading_zeros = 0
    while magnitude < 0.1:
        magnitude *= 10
        leading_zeros += 1
    return f"{value:.{max(digits - whole_digits + leading_zeros, 0)}f}"

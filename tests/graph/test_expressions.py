"""The grammar of sizes and guards: arithmetic passes, anything else does not."""

from __future__ import annotations

import pytest

from fxcompress.graph.expressions import is_expression, is_guard


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s0 + 1",
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s0'))",
        "-int_oo",
        "FloorDiv(Add(Symbol('s0', integer=True), Integer(-1)), Integer(2))",
        "Pow(Symbol('s1'), Integer(2))",
        "Max(1, s0)",
        "s0//2",
        "Mod(s0, 8)",
        "Eq(s0, 3)",
        "Rational(1, 2)",
        "Float('0.5', precision=53)",
    ],
)
def test_arithmetic_is_an_expression(text: str) -> None:
    assert is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "eval('1')",
        "s0.__class__",
        "(lambda: 1)()",
        "Symbol('a', commutative=exec)",
        "[s0]",
        "Integer('9')",
        "2**9**9",
        "Pow(2, 10**9)",
        "LShift(1, 10**9)",
        "Pow(Pow(9, 64), 64)",
        "s0; s1",
        "s0 #",
        "",
        "open('x')",
        "Float('1e999999999')",
        "Symbol(s0)",
        "f'{s0}'",
        "s0 if s1 else s2",
        "(s0 := 1)",
        "s" * 30_000,
        "os",
        "E",
        "L['x'].size()[0]",
        3,
        None,
    ],
)
def test_code_is_no_expression(text: object) -> None:
    assert not is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[0] >= 2",
        "Eq(Mod(L['x']['k'].size()[0], 2), 0)",
        "L['args'][0].stride()[1] == 1",
        "L['x'].size()[0] <= 64 and L['y'].storage_offset() == 0",
        "math.floor(L['x'].size()[0] / 2) != 3",
    ],
)
def test_comparisons_of_sizes_are_guards(text: str) -> None:
    assert is_guard(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].resize_(0)",
        "L.clear()",
        "args[0].size()",
        "math.__loader__",
        "torch.load('x')",
        "L[print]",
        "L['x\"'].size()",
        "L['x'].size(print())",
        "L['x'].size()[print()]",
        "math.floor(__import__('os'))",
    ],
)
def test_other_code_is_no_guard(text: str) -> None:
    assert not is_guard(text)

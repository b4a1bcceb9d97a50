"""The grammar of the expressions and guards that a `.pt2` file may hold as text.

torch hands symbolic sizes to `sympy.sympify`, which evaluates them, and compiles guards with `exec`. Both are
therefore parsed here first, never evaluated, and only arithmetic on symbols and integers is let through.
"""

from __future__ import annotations

import ast
import re

_LONGEST = 20_000
_LARGEST_EXPONENT = 64
_LARGEST_INTEGER = 2**64
_LARGEST_PRECISION = 1024

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}", re.ASCII)
SYMBOL = re.compile(r"[a-z]{1,3}[0-9]{1,6}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_.]{1,255}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{0,60})?(e[+-]?[0-9]{1,2})?", re.ASCII)

_CONSTANTS = frozenset(["true", "false", "True", "False", "oo", "int_oo", "inf", "nan"])
_FUNCTIONS = frozenset(
    [
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "Max",
        "Min",
        "floor",
        "ceiling",
        "Abs",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "Equality",
        "Unequality",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "And",
        "Or",
        "Not",
        "Xor",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "IsNonOverlappingAndDenseIndicator",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
    ]
)
_GUARD_FUNCTIONS = frozenset(["min", "max", "abs", "int", "float"])
_GUARD_MATH = frozenset(["floor", "ceil", "trunc", "sqrt", "isnan", "inf", "log2"])
_GUARD_METHODS = frozenset(["size", "stride", "storage_offset"])
_GROWING = frozenset(["Pow", "PowByNatural", "FloatPow", "LShift"])
_TEXTS = {"Symbol": IDENTIFIER, "Float": _DECIMAL}

_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.UAdd, ast.Not,
    ast.Invert, ast.And, ast.Or, ast.BitAnd, ast.BitOr, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


def is_expression(text: object) -> bool:
    """Whether `text` is arithmetic on symbols, as `s0*2` or `Mul(Integer(2), Symbol('s0', integer=True))`."""
    tree = _parse(text)
    return tree is not None and _allowed(tree, guard=False)


def is_guard(text: object) -> bool:
    """Whether `text` compares input sizes, as `L['x'].size()[0] >= 2`."""
    tree = _parse(text)
    return tree is not None and _allowed(tree, guard=True)


def _parse(text: object) -> ast.expr | None:
    """The syntax tree of one line of printable ASCII that holds a Python expression."""
    if not isinstance(text, str) or len(text) > _LONGEST or not (text.isascii() and text.isprintable()):
        return None
    if "#" in text or ";" in text or "\\" in text:
        return None
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _allowed(tree: ast.expr, *, guard: bool) -> bool:
    pending: list[ast.expr] = [tree]
    while pending:
        children = _children(pending.pop(), guard)
        if children is None:
            return False
        pending.extend(children)
    return True


def _children(node: ast.expr, guard: bool) -> list[ast.expr] | None:
    """The sub-expressions that remain to be checked, `None` when the node itself is not allowed."""
    if isinstance(node, ast.Constant):
        return [] if _is_number(node.value) else None
    if isinstance(node, ast.Name):
        return [] if SYMBOL.fullmatch(node.id) or node.id in _CONSTANTS else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
        growing = isinstance(node.op, ast.Pow)
        return [node.left, node.right] if not growing or _bounded(node.left, node.right) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, _OPERATORS):
        return [node.operand]
    if isinstance(node, ast.BoolOp):
        return list(node.values)
    if isinstance(node, ast.Compare) and all(isinstance(op, _OPERATORS) for op in node.ops):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Call):
        return _call_children(node, guard)
    if guard and (_is_size(node) or _is_input(node) or _is_math(node)):
        return []
    return None


def _call_children(node: ast.Call, guard: bool) -> list[ast.expr] | None:
    if guard and (_is_size(node) or (_is_math(node.func) and not node.keywords)):
        return [] if _is_size(node) else list(node.args)
    if not isinstance(node.func, ast.Name):
        return None
    name = node.func.id
    if name not in _FUNCTIONS and not (guard and name in _GUARD_FUNCTIONS):
        return None
    if not all(_is_assumption(keyword) for keyword in node.keywords):
        return None
    arguments = list(node.args)
    if name in _GROWING and not (len(arguments) == 2 and _bounded(*arguments)):
        return None
    if name in _TEXTS:
        return [] if len(arguments) == 1 and _is_text(arguments[0], _TEXTS[name]) else None
    return arguments


def _is_number(value: object) -> bool:
    return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) <= _LARGEST_INTEGER)


def _is_text(node: ast.expr, grammar: re.Pattern[str]) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and grammar.fullmatch(node.value) is not None
    )


def _is_assumption(keyword: ast.keyword) -> bool:
    """`positive=True` or `precision=53`."""
    if keyword.arg is None or not isinstance(keyword.value, ast.Constant):
        return False
    value = keyword.value.value
    return value is None or (isinstance(value, int) and abs(value) <= _LARGEST_PRECISION)


def _bounded(base: ast.expr, exponent: ast.expr) -> bool:
    """A power or shift that stays small: a small literal exponent, and no power of a power of constants."""
    literals = [n for n in ast.walk(exponent) if isinstance(n, ast.Constant)]
    small = all(isinstance(n.value, bool | int | float | str) and _small(n.value) for n in literals)
    nested = any(
        isinstance(n, ast.Pow) or (isinstance(n, ast.Name) and n.id in _GROWING)
        for part in (base, exponent)
        for n in ast.walk(part)
    )
    arithmetic = any(isinstance(n, ast.BinOp) for n in ast.walk(exponent))
    return small and not nested and not arithmetic


def _small(value: str | float) -> bool:
    return isinstance(value, str) or abs(value) <= _LARGEST_EXPONENT


def _is_input(node: ast.expr) -> bool:
    """`L['x']`, `L['x']['key']`, `L['x'][0]`."""
    while isinstance(node, ast.Subscript):
        key = node.slice
        if not (_is_text(key, _KEY) or (isinstance(key, ast.Constant) and type(key.value) is int)):
            return False
        node = node.value
    return isinstance(node, ast.Name) and node.id == "L"


def _is_size(node: ast.expr) -> bool:
    """`L['x'].size()[0]`, `L['x'].stride()[1]`, `L['x'].storage_offset()`."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
        if not (isinstance(node.slice, ast.Constant) and type(node.slice.value) is int):
            return False
        node = node.value
    return (
        isinstance(node, ast.Call)
        and not node.args
        and not node.keywords
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _GUARD_METHODS
        and _is_input(node.func.value)
    )


def _is_math(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "math"
        and node.attr in _GUARD_MATH
    )

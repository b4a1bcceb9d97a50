"""Reading the equation of an einsum: one letter per dimension, ellipses and implicit results spelled out."""

from __future__ import annotations

from collections.abc import Sequence


def spelled(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The letters of every operand and of the result.

    The dimensions of an ellipsis are letters too, `...1` for the last of them, since they align from the
    right. Without an arrow, the result has the ellipsis and then, sorted, the letters that occur once.

    Args:
        equation: as given to `torch.einsum`.
        ranks: the number of dimensions of each operand.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_term(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    hidden = max((sum(letter.startswith("...") for letter in term) for term in terms), default=0)
    if arrow:
        return terms, _term(right, len(right.replace("...", "")) + hidden)
    every = [letter for term in terms for letter in term]
    once = sorted(letter for letter in set(every) if every.count(letter) == 1 and "." not in letter)
    return terms, [*(f"...{place}" for place in range(hidden, 0, -1)), *once]


def _term(term: str, rank: int) -> list[str]:
    before, ellipsis, after = term.partition("...")
    hidden = rank - len(before) - len(after) if ellipsis else 0
    return [*before, *(f"...{place}" for place in range(hidden, 0, -1)), *after]

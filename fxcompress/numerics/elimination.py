"""Optimal elimination: which inputs of a linear map can be missed once the others are re-fitted.

`y = x W` with inputs of covariance `C`. When the inputs `S` go and the others are re-fitted by least
squares, the expected squared error of `y` is `tr(W_S^T (C^-1)_SS^-1 W_S)`, the best other rows are `W -
C^-1_{:,S} (C^-1)_SS^-1 W_S`, and the inverse loses `S` by the same update (Hassibi and Stork 1993, Optimal
Brain Surgeon; in groups Kurtic et al. 2023, ZipLM). Going greedily, inputs that repeat each other do not all
go at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxcompress.numerics.saliency import Scores

Matrix = NDArray[np.float64]
DAMPING = 1e-3
"""Ridge on the covariance, as a share of its mean diagonal."""


@dataclass
class Refit:
    """A linear map whose inputs leave one index at a time.

    Args:
        positions: `[indices, positions per index]`, the inputs that belong to each index.
        inverse: of the damped covariance, `[inputs, inputs]`.
        rows: what is left of the map, `[inputs, outputs]`.
        total: the map's output energy to begin with, which errors are relative to.
    """

    positions: NDArray[np.int64]
    inverse: Matrix
    rows: Matrix
    total: float

    @staticmethod
    def of(positions: NDArray[np.int64], covariance: Matrix, rows: Matrix) -> Refit:
        """A map before anything left."""
        ridge = DAMPING * float(np.trace(covariance)) / len(covariance) + np.finfo(np.float64).tiny
        damped = covariance + ridge * np.eye(len(covariance))
        total = float(np.einsum("if,ij,jf->", rows, damped, rows, optimize=True))
        inverse: Matrix = np.linalg.inv(damped).astype(np.float64)
        return Refit(positions, inverse, rows.copy(), max(total, np.finfo(np.float64).tiny))

    def errors(self) -> Scores:
        """The relative error that each index would add if it left now."""
        if self.positions.shape[1] == 1:
            places = self.positions[:, 0]
            energy = np.einsum("if,if->i", self.rows[places], self.rows[places])
            diagonal = self.inverse[places, places]
            return np.divide(energy, diagonal, out=np.zeros(len(places)), where=diagonal > 0) / self.total
        return np.array([self._error(places) for places in self.positions]) / self.total

    def _error(self, places: NDArray[np.int64]) -> float:
        block = self.inverse[np.ix_(places, places)]
        if not block.any():
            return 0.0
        return float(np.einsum("if,if->", self.rows[places], np.linalg.solve(block, self.rows[places])))

    def remove(self, index: int) -> None:
        """Let an index leave: the others are re-fitted."""
        places = self.positions[index]
        block = self.inverse[np.ix_(places, places)]
        columns = self.inverse[:, places]
        self.rows -= columns @ np.linalg.solve(block, self.rows[places])
        self.inverse -= columns @ np.linalg.solve(block, columns.T)
        self.rows[places] = 0.0
        self.inverse[places], self.inverse[:, places] = 0.0, 0.0


def elimination(size: int, refits: Sequence[Refit], fixed: Scores) -> Scores:
    """The error that each index adds when it leaves, in the greedy order; never falling in that order.

    Args:
        size: the number of indices.
        refits: the maps that read them; their errors add up.
        fixed: an error per index that does not change as others leave.
    """
    left, scores, highest = np.ones(size, dtype=bool), np.zeros(size), 0.0
    for _ in range(size):
        errors = fixed + sum((refit.errors() for refit in refits), np.zeros(size))
        index = int(np.argmin(np.where(left, errors, np.inf)))
        highest = max(highest, float(errors[index]))
        scores[index], left[index] = highest, False
        for refit in refits:
            refit.remove(index)
    return scores

"""Least squares with non-negative coefficients, for the handful of terms that the latency model has."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

# An active set must beat a smaller one by this share of the target's squares, or rounding would pick superfluous terms.
_IMPROVEMENT = 1e-12


def solve_nnls(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise |matrix x - target| over x >= 0.

    The optimum is the ordinary least-squares solution on the columns where it is positive (Lawson and Hanson, Solving
    Least Squares Problems, 1974, chapter 23). With n columns there are 2^n such sets; n is at most six here, so all of
    them are tried: exact, without iteration or a stopping tolerance. Of equally good sets the smallest wins.

    Args:
        matrix: (rows, columns).
        target: (rows,).

    Returns:
        (columns,), all >= 0.
    """
    num_columns = matrix.shape[1]
    norms = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(norms > 0, norms, 1.0)
    best = np.zeros(num_columns)
    best_error = float(target @ target)
    margin = _IMPROVEMENT * best_error
    for size in range(1, num_columns + 1):
        for chosen in combinations(np.flatnonzero(norms > 0), size):
            columns = list(chosen)
            solution = np.linalg.lstsq(scaled[:, columns], target, rcond=None)[0]
            residual = scaled[:, columns] @ solution - target
            error = float(residual @ residual)
            if solution.min() >= 0 and error < best_error - margin:
                best = np.zeros(num_columns)
                best[columns] = solution / norms[columns]
                best_error = error
    return best

"""How far two rankings agree."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Sums in another order differ in the last bits; such scores are ties all the same.
_TIE = 1e-12


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, from -1 to 1; ties share the mean of their ranks.

    None where it has no meaning: fewer than two values, or values that are all equal on one side.
    """
    if len(first) < 2:
        return None
    ours, theirs = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    spread = float(np.sqrt((ours @ ours) * (theirs @ theirs)))
    return float(ours @ theirs) / spread if spread else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value from 0 on, equal ones sharing theirs."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    apart = np.diff(ordered) > _TIE * np.abs(values).max()
    groups = np.concatenate([[0], np.cumsum(apart)])
    sizes = np.bincount(groups)
    means = np.cumsum(sizes) - (sizes + 1) / 2
    ranks = np.empty(len(values))
    ranks[order] = means[groups]
    return ranks

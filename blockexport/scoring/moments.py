"""Mean and standard error of samples that arrive in batches."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Moments:
    """What is known of one block.

    Batches are merged with the pairwise update of Chan et al. (https://doi.org/10.2307/2683386), which does not
    cancel as a plain sum of squares would.

    Attributes:
        count: samples so far.
        mean: their mean.
        squares: sum of squared deviations from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in a batch of at least one sample."""
        mean = float(values.mean())
        self.merge(Moments(len(values), mean, float(((values - mean) ** 2).sum())))

    def merge(self, other: "Moments") -> None:
        """Take in what is known of other samples of the same block."""
        if not other.count:
            return
        apart = other.mean - self.mean
        total = self.count + other.count
        self.squares += other.squares + apart**2 * self.count * other.count / total
        self.mean += apart * other.count / total
        self.count = total

    @property
    def stderr(self) -> float:
        """Standard error of the mean; 0 for fewer than two samples, which tell nothing of it."""
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else 0.0

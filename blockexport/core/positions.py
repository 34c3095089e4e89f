"""Positions of prompts whose image tokens stand in rows and columns: M-RoPE (arXiv:2409.12191).

Such a model places a token in time, row and column. Words have the same number in all three; image tokens of a picture
share their time, and count rows and columns from it; what follows goes on behind the largest of these numbers. Engines
are told how far these positions are from the token's place in the text, which for text alone is 0.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from blockexport.errors import RequestError

NUM_AXES = 3
"""Time, row, column."""


@dataclass(frozen=True, slots=True, eq=False)
class PositionShifts:
    """How far the positions of a batch's tokens are from their places.

    Attributes:
        shifts: (3, batch, tokens); the last column holds for everything behind.
    """

    shifts: NDArray[np.int64]

    @classmethod
    def of_places(cls, places: NDArray[np.int64], grid: tuple[int, int], batch: int) -> Self:
        """Of pictures in prompts.

        Args:
            places: (crops, pooled, 2), row and column of each image token in the batch; a column below 0 for none.
            grid: rows and columns of a picture's image tokens, which are in this order.
            batch: rows of the batch.

        Raises:
            RequestError: image tokens of one picture do not stand side by side.
        """
        coordinates = np.stack([np.zeros(grid, np.int64), *np.indices(grid)]).reshape(NUM_AXES, -1)
        shifts = np.zeros((NUM_AXES, batch, int(places[..., 1].max(initial=-1)) + 2), np.int64)
        first_columns = np.where(places[..., 1] < 0, shifts.shape[2], places[..., 1]).min(1, initial=shifts.shape[2])
        for crop in np.argsort(first_columns, kind="stable"):
            is_placed = places[crop, :, 1] >= 0
            rows, columns = places[crop, is_placed].T
            if not columns.size:
                continue
            if (np.diff(columns) != 1).any():
                msg = f"image tokens of a picture are at {columns.tolist()}; this model wants them side by side"
                raise RequestError(msg)
            row, first, behind = rows[0], columns[0], columns[-1] + 1
            ahead = shifts[0, row, first]
            shifts[:, row, first:behind] = first + ahead + coordinates[:, is_placed] - columns
            shifts[:, row, behind:] = ahead + max(grid) - columns.size
        return cls(shifts)

    def columns(self, begin: int, end: int, row: int | None = None) -> NDArray[np.int64]:
        """Those of tokens `begin` to `end`, (3, batch, tokens), of one row alone if it is named."""
        index = np.arange(begin, end).clip(max=self.shifts.shape[2] - 1)
        rows = self.shifts if row is None else self.shifts[:, row : row + 1]
        return np.ascontiguousarray(rows[:, :, index])

    @property
    def behind(self) -> NDArray[np.int64]:
        """Those of each token behind the prompts, (batch,); the same on all axes."""
        return self.shifts[0, :, -1]

    def behind_tokens(self, count: int) -> NDArray[np.int64]:
        """Those of so many tokens behind the prompts, (3, batch, count)."""
        return np.tile(self.behind[:, None], (NUM_AXES, 1, count))

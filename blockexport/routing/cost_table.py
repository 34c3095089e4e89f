"""A table of measured levels as lines over depth, prepared once so that asking for one is two interpolations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import numpy as np

from blockexport.core.latency_table import PhaseTable, interpolate

Line = tuple[float, float]
"""Milliseconds at depth 0, and for each block."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Lines of one batch size: at each length a line that no level lies above, so neither does one lie between."""

    tokens: tuple[int, ...]
    fixed_ms: tuple[float, ...]
    slopes_ms: tuple[float, ...]

    def at(self, tokens: float) -> Line:
        return interpolate(self.tokens, self.fixed_ms, tokens), interpolate(self.tokens, self.slopes_ms, tokens)


@dataclass(frozen=True, slots=True)
class CostTable:
    """Lines over depth for measured batches and lengths.

    Levels that are no line over depth, such as those of several precisions, are bounded by one: its slope is the best
    in least squares that is not negative, and it is as high as the level that needs it highest. What it is off for one
    level is for that level's tracked quantile to learn.
    """

    batches: tuple[int, ...]
    rows: tuple[_Row, ...]

    @classmethod
    def of(cls, table: PhaseTable) -> Self:
        """Of the table of one phase."""
        batches = sorted({curve.batch for curve in table.curves})
        return cls(tuple(batches), tuple(_row(table, batch) for batch in batches))

    def line(self, batch: float, tokens: float) -> Line:
        """The line at a batch size and a number of tokens per row; beyond measured batches in proportion."""
        lines = [row.at(tokens) for row in self.rows]
        fixed, slopes = zip(*lines, strict=True)
        known, beyond = min(batch, self.batches[-1]), max(1.0, batch / self.batches[-1])
        return beyond * _rising(self.batches, fixed, known), beyond * _rising(self.batches, slopes, known)


def _row(table: PhaseTable, batch: int) -> _Row:
    tokens = sorted({count for curve in table.curves if curve.batch == batch for count in curve.tokens})
    depths = sorted(table.levels)
    lines = [_upper_line(depths, [table.at(depth, batch, count) for depth in depths]) for count in tokens]
    fixed, slopes = (tuple(accumulate(part, max)) for part in zip(*lines, strict=True))
    return _Row(tuple(tokens), fixed, slopes)


def _rising(knots: tuple[int, ...], values: Sequence[float], at: float) -> float:
    return interpolate(knots, tuple(accumulate(values, max)), at)


def _upper_line(depths: list[int], times_ms: list[float]) -> Line:
    slope = max(0.0, float(np.polyfit(depths, times_ms, 1)[0])) if len(depths) > 1 else 0.0
    fixed = max(time - slope * depth for depth, time in zip(depths, times_ms, strict=True))
    return max(0.0, fixed), slope

"""Latency as a table: what was measured for each level and batch, and between measured lengths what lies between."""

import bisect
from collections.abc import Sequence
from functools import cached_property
from typing import Self

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from blockexport.errors import ProfileError

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def interpolate(knots: Sequence[float], values: Sequence[float], at: float) -> float:
    """A line through both neighbours of `at`; beyond the last knot the last line goes on, before the first none does.

    Args:
        knots: ascending, one at least.
        values: what holds there, never falling.
        at: where it is wanted.
    """
    if at <= knots[0] or len(knots) == 1:
        return values[0]
    right = min(bisect.bisect_left(knots, at), len(knots) - 1)
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


class Curve(BaseModel):
    """One level at one batch size.

    Attributes:
        depth: kept blocks, by which a level of a ladder is known.
        batch: rows.
        tokens: ascending: of prefill the new ones per row, of decode those in the cache, of a whole pass 0.
        ms: what each took, never falling.
    """

    model_config = _FROZEN

    depth: PositiveInt
    batch: PositiveInt
    tokens: tuple[NonNegativeInt, ...]
    ms: tuple[NonNegativeFloat, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        ascending = list(self.tokens) == sorted(set(self.tokens)) and list(self.ms) == sorted(self.ms)
        if not self.tokens or len(self.tokens) != len(self.ms) or not ascending:
            msg = f"a latency table has {list(self.ms)} ms at {list(self.tokens)} tokens; profile again"
            raise ProfileError(msg)
        return self

    def at(self, tokens: float) -> float:
        """Milliseconds at so many tokens per row."""
        return interpolate(self.tokens, self.ms, tokens)


class PhaseTable(BaseModel):
    """The curves of all levels and batch sizes of one phase."""

    model_config = _FROZEN

    curves: tuple[Curve, ...]

    @cached_property
    def levels(self) -> dict[int, tuple[Curve, ...]]:
        """The curves of each depth, by ascending batch."""
        ordered = sorted(self.curves, key=lambda curve: (curve.depth, curve.batch))
        return {depth: tuple(c for c in ordered if c.depth == depth) for depth in {c.depth for c in ordered}}

    def at(self, depth: int, batch: float, tokens: float) -> float:
        """Milliseconds of one level; between measured batch sizes what lies between, beyond them in proportion.

        Raises:
            ProfileError: no level has this depth: a table knows nothing of depths that nobody measured.
        """
        curves = self.levels.get(depth)
        if curves is None:
            known = ", ".join(str(known) for known in sorted(self.levels))
            msg = f"the latency table has no level of {depth} blocks, only of {known}; profile a bundle that has one"
            raise ProfileError(msg)
        times = [curve.at(tokens) for curve in curves]
        # Noise may let a larger batch seem cheaper.
        rising = [max(times[: number + 1]) for number in range(len(times))]
        batches = [curve.batch for curve in curves]
        # Rows together take no longer than one after the other.
        return interpolate(batches, rising, min(batch, batches[-1])) * max(1.0, batch / batches[-1])

"""The latency model as it holds right now: the profile's fit, the host's slowdown, and quantiles of what is left."""

import math
from typing import Literal

from blockexport.routing.costs import Line, StepCosts
from blockexport.routing.quantile import Coverage, QuantileTracker
from blockexport.routing.slowdown import SlowdownTracker

StepPhase = Literal["prefill", "decode"]

_RATE = 0.02
_MEMORY = 128
_STEADY_SHARE = 0.8
"""Of the misses that are allowed: a change of speed costs some before it is noticed, and they count too."""


class _Ratio:
    """Observed over predicted time of late, long blocks counting for more."""

    __slots__ = ("_observed_ms", "_predicted_ms")

    def __init__(self) -> None:
        self._observed_ms = self._predicted_ms = 0.0

    def observe(self, predicted_ms: float, observed_ms: float) -> None:
        self._observed_ms += observed_ms - self._observed_ms / _MEMORY
        self._predicted_ms += predicted_ms - self._predicted_ms / _MEMORY

    @property
    def value(self) -> float:
        return self._observed_ms / self._predicted_ms if self._predicted_ms > 0 else 1.0


class OnlineLatency:
    """Predicts blocks of steps, and learns from each that ran.

    A block is scored before anything is updated by it, so the coverage is that of bounds as they were given.

    Args:
        costs: the fit.
        num_levels: levels of the ladder.
        alpha: share of blocks that may take longer than their bound.
        first_quantile: of the logarithm of observed / predicted time, before anything was observed.

    Attributes:
        costs: the fit.
        alpha: as given.
        coverage: how the bounds have held.
    """

    def __init__(self, costs: StepCosts, num_levels: int, alpha: float = 0.05, first_quantile: float = 0.0) -> None:
        self.costs, self.alpha = costs, alpha
        self.coverage = Coverage()
        self._slowdown = SlowdownTracker()
        phases: tuple[StepPhase, ...] = ("prefill", "decode")
        self._ratios = {p: [_Ratio() for _ in range(num_levels)] for p in phases}
        self._quantiles = {
            p: [QuantileTracker(_STEADY_SHARE * alpha, _RATE, first_quantile) for _ in range(num_levels)]
            for p in phases
        }

    @property
    def slowdown(self) -> float:
        """Present time over profiled time; 1 as profiled."""
        return self._slowdown.factor

    def bound_factor(self, phase: StepPhase, level: int) -> float:
        """From the profile's prediction of a block to its bound now."""
        return math.exp(self._slowdown.log_factor + self._quantiles[phase][level].value)

    def mean_factor(self, phase: StepPhase, level: int) -> float:
        """From the profile's prediction of a block to what is expected of it now.

        Beside the slowdown it holds what this level has been off of late: a line over depth does not meet every level,
        and no profile knows what comes between two steps.
        """
        return self.slowdown * self._ratios[phase][level].value

    def prefill_line(self, new_tokens: float, cached_tokens: float = 0.0) -> Line:
        """A prefill at the present speed, as a line over depth."""
        factor = self.slowdown
        fixed, slope = self.costs.prefill_line(new_tokens, cached_tokens)
        return factor * fixed, factor * slope

    def decode_line(self, num_rows: float, sum_kv_tokens: float) -> Line:
        """A decode step at the present speed, as a line over depth."""
        factor = self.slowdown
        fixed, slope = self.costs.decode_line(num_rows, sum_kv_tokens)
        return factor * fixed, factor * slope

    def observe(self, phase: StepPhase, level: int, profiled_ms: float, observed_ms: float, now_ms: float) -> None:
        """Learn from one block of steps: what the profile says that it takes, and what it took."""
        if profiled_ms <= 0 or observed_ms <= 0:
            return
        log_ratio = math.log(observed_ms / profiled_ms)
        within = self._quantiles[phase][level].observe(log_ratio - self._slowdown.log_factor)
        self.coverage.observe(level, now_ms, is_within=within)
        self._ratios[phase][level].observe(profiled_ms * self.slowdown, observed_ms)
        self._slowdown.observe(log_ratio, observed_ms)

"""The seed's rule for a latency budget: depth in proportion to the budget.

It takes latency for proportional to depth, ignoring everything that does not shrink with it (embedding, head, launch),
and so promises too much where the budget is short. Kept to compare with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError, ProfileError
from blockexport.routing.decision import Choice
from blockexport.routing.estimate import LevelEstimate


@dataclass(frozen=True, slots=True)
class SeedAdaptive:
    """Depth = int(num_blocks * budget / baseline), within 1 and num_blocks; then the deepest level not deeper.

    Attributes:
        num_blocks: blocks of the full model; None takes the depth of the deepest candidate.
        baseline_ms: latency of the full model; None takes the predicted time of the deepest candidate.
    """

    num_blocks: int | None = None
    baseline_ms: float | None = None

    def __post_init__(self) -> None:
        if self.num_blocks is not None and self.num_blocks < 1:
            msg = f"num_blocks is {self.num_blocks}; a model has at least one block"
            raise ConfigError(msg)
        if self.baseline_ms is not None and not (math.isfinite(self.baseline_ms) and self.baseline_ms > 0):
            msg = f"baseline_ms is {self.baseline_ms}; it must be a positive, finite number of milliseconds"
            raise ConfigError(msg)

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "seed-adaptive"

    def choose(self, candidates: Sequence[LevelEstimate], budget: LatencyBudget | None, /) -> Choice:
        """Pick from candidates, deepest first, at least one.

        Raises:
            ConfigError: the budget has no end-to-end limit.
            ProfileError: the baseline is predicted to take no time.
        """
        if budget is None:
            return Choice(candidates[0], f"no budget given, so the deepest level: {candidates[0].level}")
        if budget.e2e_ms is None:
            msg = "policy seed-adaptive knows end-to-end limits only; give e2e_ms or use deepest-fit"
            raise ConfigError(msg)
        num_blocks = candidates[0].depth if self.num_blocks is None else self.num_blocks
        baseline_ms = candidates[0].predicted_ms if self.baseline_ms is None else self.baseline_ms
        if baseline_ms <= 0:
            msg = "the full depth is predicted to take 0 ms, no ratio can be formed; profile this host again"
            raise ProfileError(msg)
        # Capped before multiplying: the depth is the same, and a huge ratio does not overflow.
        ratio = min(1.0, budget.e2e_ms / baseline_ms)
        depth = max(1, int(num_blocks * ratio))
        picked = deepest_within(candidates, depth)
        reason = f"{budget.e2e_ms:.6g} of {baseline_ms:.6g} ms for {num_blocks} blocks asks for depth {depth}"
        return Choice(picked, f"{reason}: {picked.level}")


def deepest_within(candidates: Sequence[LevelEstimate], depth: int) -> LevelEstimate:
    """The deepest candidate not deeper than `depth`, else the shallowest; candidates come deepest first."""
    return next((candidate for candidate in candidates if candidate.depth <= depth), candidates[-1])

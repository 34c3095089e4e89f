"""The deepest level that keeps the promise."""

from collections.abc import Sequence
from dataclasses import dataclass

from blockexport.core.latency import LatencyBudget
from blockexport.routing.decision import Choice
from blockexport.routing.estimate import LevelEstimate


@dataclass(frozen=True, slots=True)
class DeepestFit:
    """Pick the deepest level whose bounds fit every given limit; when none fits, the fastest level."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "deepest-fit"

    def choose(self, candidates: Sequence[LevelEstimate], budget: LatencyBudget | None, /) -> Choice:
        """Pick from candidates, deepest first, at least one."""
        deepest, fastest = candidates[0], candidates[-1]
        if budget is None:
            return Choice(deepest, f"no budget given, so the deepest level: {deepest.level}")
        for candidate in candidates:
            if not candidate.misses(budget):
                return Choice(candidate, _why(candidate, deepest))
        return Choice(fastest, f"no level fits the budget; {fastest.level} is the fastest")


def _why(candidate: LevelEstimate, deepest: LevelEstimate) -> str:
    role = "the deepest level" if candidate is deepest else "the deepest level that fits"
    return f"{candidate.level} is {role}; its bound of {candidate.bound_ms:.6g} ms keeps the budget"

"""What a policy chooses, and what the router answers."""

from dataclasses import asdict, dataclass
from typing import Any

from blockexport.routing.estimate import LevelEstimate


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy's pick among the estimates it was given, and why."""

    picked: LevelEstimate
    reason: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """A level that was not chosen.

    Attributes:
        level: name of the level.
        depth: its kept blocks.
        predicted_ms: from the call to the last token.
        bound_ms: bound of the same.
        feasible: whether its bounds fit the budget and its quality the floor.
    """

    level: str
    depth: int
    predicted_ms: float
    bound_ms: float
    feasible: bool


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The level for a request, what it is predicted to take, and why.

    Attributes:
        level: name of the chosen level; when nothing fits, what the policy falls back to.
        depth: its kept blocks.
        predicted_ms: from the call to the last token.
        bound_ms: bound of the same.
        ttft_ms: predicted to the first token.
        tpot_ms: predicted for each token after the first; None when there is no such token.
        feasible: whether the bounds of the chosen level fit every limit of the budget; True without a budget.
        reason: one line for people.
        policy: name of the policy.
        ttft_bound_ms: bound of `ttft_ms`.
        tpot_bound_ms: bound of `tpot_ms`.
        alternatives: all other levels, deepest first.
        vision_ms: the part of `ttft_ms` that reads pictures, whatever the level.
    """

    level: str
    depth: int
    predicted_ms: float
    bound_ms: float
    ttft_ms: float
    tpot_ms: float | None
    feasible: bool
    reason: str
    policy: str
    ttft_bound_ms: float
    tpot_bound_ms: float | None
    alternatives: tuple[Alternative, ...] = ()
    vision_ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The decision as the command line prints it."""
        return {**asdict(self), "alternatives": [asdict(other) for other in self.alternatives]}

"""Always the same level: full depth, the shallowest, or any other."""

from dataclasses import dataclass

from blockexport.routing.ladder import Ladder
from blockexport.routing.step import BatchState, Order, StepPlan
from blockexport.routing.turn import row_level, take_turn


@dataclass(frozen=True, slots=True)
class FixedDepth:
    """Run everything at one level.

    Attributes:
        level: its index; negative ones count from the shallowest.
        order: how requests wait.
        sheds: whether requests that can no longer be in time are ended, and none is taken in that would make one late.
    """

    level: int
    order: Order = "edf"
    sheds: bool = True

    @property
    def name(self) -> str:
        """Name in the registry."""
        return f"fixed:{self.level}"

    def shallowest(self, ladder: Ladder, /) -> int:
        """The level itself."""
        return self.level % len(ladder.depths)

    def decide(self, state: BatchState, /) -> StepPlan:
        """Serve at the level."""
        level = self.shallowest(state.ladder)
        levels = [row_level(row, level) for row in state.running]
        return take_turn(state, levels, lambda _ticket: level, "the only level of this policy", careful=self.sheds)

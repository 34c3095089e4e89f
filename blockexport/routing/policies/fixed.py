"""Always the same level."""

from collections.abc import Sequence
from dataclasses import dataclass

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError
from blockexport.routing.decision import Choice
from blockexport.routing.estimate import LevelEstimate


@dataclass(frozen=True, slots=True)
class Fixed:
    """Pick the level of one name, whatever the budget.

    Attributes:
        level: its name.
    """

    level: str

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "fixed"

    def choose(self, candidates: Sequence[LevelEstimate], _budget: LatencyBudget | None, /) -> Choice:
        """Pick from candidates, deepest first, at least one.

        Raises:
            ConfigError: no candidate has that name.
        """
        for candidate in candidates:
            if candidate.level == self.level:
                return Choice(candidate, f"{self.level} was asked for by name")
        allowed = ", ".join(candidate.level for candidate in candidates)
        msg = f"no level {self.level!r} to choose; the levels allowed for this request are {allowed}"
        raise ConfigError(msg)

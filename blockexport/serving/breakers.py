"""Keeps away from levels whose engine failed, until a probe shows that they work again."""

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]

_FIRST_REST_MS = 500.0
_LONGEST_REST_MS = 60_000.0


@dataclass(slots=True)
class _Breaker:
    num_failures: int = 0
    rest_until_ms: float = 0.0
    reason: str = ""


class Breakers:
    """One breaker for each level.

    A failure opens it: the level rests. After the rest the next step that wants the level is a probe; if it succeeds,
    the breaker closes, if not, the level rests twice as long (the circuit breaker of Nygard, Release It!, 2007). A
    probe risks one step and never a token, for what a failed step wrote does not count.

    Args:
        num_levels: levels of the ladder, deepest first.
    """

    def __init__(self, num_levels: int) -> None:
        self._breakers = [_Breaker() for _ in range(num_levels)]

    def state(self, level: int, now_ms: float) -> BreakerState:
        """Whether a level may run: `half-open` for a probe."""
        breaker = self._breakers[level]
        if not breaker.num_failures:
            return "closed"
        return "open" if now_ms < breaker.rest_until_ms else "half-open"

    def reason(self, level: int) -> str:
        """What the level failed with last; "" while it works."""
        return self._breakers[level].reason

    @property
    def all_closed(self) -> bool:
        """Whether no level has failed since it last worked."""
        return not any(breaker.num_failures for breaker in self._breakers)

    def fail(self, level: int, now_ms: float, reason: str) -> None:
        """Note a failure."""
        breaker = self._breakers[level]
        rest_ms = min(_LONGEST_REST_MS, _FIRST_REST_MS * 2.0 ** min(breaker.num_failures, 10))
        breaker.num_failures += 1
        breaker.rest_until_ms = now_ms + rest_ms
        breaker.reason = reason

    def succeed(self, level: int) -> None:
        """Note a step that went well."""
        breaker = self._breakers[level]
        breaker.num_failures, breaker.reason = 0, ""

    def substitute(self, wanted: int, shallowest: int, now_ms: float) -> int | None:
        """The level itself if it may run, else the next shallower that may, else the next deeper; None for none.

        Shallower levels go on at once, for they have all their tokens; deeper ones have to run some again. None is
        below `shallowest`.
        """
        shallower = range(wanted, shallowest + 1)
        deeper = range(wanted - 1, -1, -1)
        return next((level for level in (*shallower, *deeper) if self.state(level, now_ms) != "open"), None)

    def next_probe_ms(self) -> float:
        """When the first of the resting levels may run again."""
        return min(breaker.rest_until_ms for breaker in self._breakers)

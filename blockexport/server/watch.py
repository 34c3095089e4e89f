"""What the page shows: the last answers, and how well they kept what was asked."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from blockexport.server.answer import Answer

_MAX_KEPT = 400
_MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that ended.

    Attributes:
        at_s: when, by the clock of the watch.
        outcome: how.
        is_in_time: whether it kept all limits.
        depth: mean over its tokens; None without tokens.
        observed_ms: time it took; None if nobody waited for the end.
        predicted_ms: what was predicted of it; None if it was not taken in.
        bound_ms: what was promised.
        budget_ms: what was asked for; None without a limit.
    """

    at_s: float
    outcome: str
    is_in_time: bool
    depth: float | None
    observed_ms: float | None
    predicted_ms: float | None
    bound_ms: float | None
    budget_ms: float | None


class Watch:
    """Remembers the last requests.

    Args:
        depths: of the levels, by name.
        clock: monotonic seconds.
    """

    def __init__(self, depths: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._depths = dict(depths)
        self._clock = clock
        self._seen: deque[Seen] = deque(maxlen=_MAX_KEPT)

    def note(self, answer: Answer, outcome: str) -> None:
        """A request ended, or its caller went away."""
        ending, promise, budget = answer.ending, answer.promise, answer.request.contract.budget
        tokens = {} if ending is None else ending.tokens_at
        total = sum(tokens.values())
        self._seen.append(
            Seen(
                at_s=self._clock(),
                outcome=outcome,
                is_in_time=ending is not None and ending.is_in_time,
                depth=sum(self._depths.get(name, 0) * n for name, n in tokens.items()) / total if total else None,
                observed_ms=None if ending is None else ending.observed_ms,
                predicted_ms=None if promise is None else promise.predicted_ms,
                bound_ms=None if promise is None else promise.bound_ms,
                budget_ms=None if budget is None else budget.e2e_ms,
            )
        )

    def recent(self) -> dict[str, Any]:
        """Shares over the last requests, and each of the very last, with how many seconds ago it ended."""
        now, seen = self._clock(), list(self._seen)
        wanted = [one for one in seen if one.outcome != "cancelled"]
        depths = [one.depth for one in seen if one.depth is not None]
        promised = [one for one in wanted if one.bound_ms is not None and one.observed_ms is not None]
        kept = [one for one in promised if (one.observed_ms or 0) <= (one.bound_ms or 0)]
        return {
            "count": len(seen),
            "attainment": sum(one.is_in_time for one in wanted) / len(wanted) if wanted else None,
            "bounds_kept": len(kept) / len(promised) if promised else None,
            "mean_depth": sum(depths) / len(depths) if depths else None,
            "outcomes": {name: sum(one.outcome == name for one in seen) for name in {one.outcome for one in seen}},
            "requests": [asdict(one) | {"ago_s": now - one.at_s} for one in seen[-_MAX_SHOWN:]],
        }

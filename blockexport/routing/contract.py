"""What a caller is promised: limits in time, a floor in quality, and what happens when the limits cannot be kept."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError

OnMiss = Literal["finish", "truncate", "error"]

MAX_PRIORITY = 9


@dataclass(frozen=True, slots=True)
class Contract:
    """The terms of one request. The clock runs from entry into the router to the token handed out.

    Attributes:
        budget: limits in time; None for no limit.
        min_quality: least quality of any token, between 0 and 1; None for no floor.
        task: tag whose quality counts, where the bundle was judged on tasks; None for the whole.
        priority: from -9 to 9; a request counts e^priority times as much as one of priority 0, and one below 0 is
            the first to be refused.
        on_miss: what becomes of a request that can no longer be in time: `finish` at the shallowest level, `truncate`
            to the tokens there are, or end with an `error`.
    """

    budget: LatencyBudget | None = None
    min_quality: float | None = None
    task: str | None = None
    priority: int = 0
    on_miss: OnMiss = "finish"

    def __post_init__(self) -> None:
        if self.min_quality is not None and not 0 <= self.min_quality <= 1:
            msg = f"min_quality is {self.min_quality}; give a number from 0 to 1, or none"
            raise ConfigError(msg)
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            msg = f"priority is {self.priority!r}; give a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
            raise ConfigError(msg)
        if self.on_miss not in get_args(OnMiss):
            msg = f"on_miss is {self.on_miss!r}; choose from {', '.join(get_args(OnMiss))}"
            raise ConfigError(msg)
        if self.budget is not None:
            _check_agreement(self.budget)

    @property
    def weight(self) -> float:
        """How much the request counts beside others."""
        return math.exp(self.priority)


def _check_agreement(budget: LatencyBudget) -> None:
    """A limit that another one makes pointless is a mistake of the caller, and not guessed at."""
    pairs = (("ttft_ms", "e2e_ms"), ("tpot_ms", "e2e_ms"), ("gap_ms", "e2e_ms"), ("tpot_ms", "gap_ms"))
    for inner, outer in pairs:
        least, most = getattr(budget, inner), getattr(budget, outer)
        if least is not None and most is not None and least > most:
            msg = f"budget {inner} {least:g} exceeds {outer} {most:g}, which contains it; lower {inner} or leave it out"
            raise ConfigError(msg)

"""An engine that takes time by the latency model instead of computing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blockexport.routing.costs import Line, StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.ticket import Ticket


@dataclass(slots=True)
class VirtualClock:
    """Milliseconds that pass only when told to."""

    now_ms: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now_ms


class SimulatedEngine:
    """Steps as long as the latency model says, times a slowdown that may change, times independent noise.

    Args:
        costs: the fit, which is then exact but for slowdown and noise.
        ladder: the levels.
        clock: moved by every step.
        lengths: tokens of each answer, by number of the request; nobody else is told.
        slowdown: the true factor at a time.
        jitter: standard deviation of the logarithm of one step's noise.
        rng: for the noise.
        next_arrival: when the next request will come, so that a block of steps ends in time for it.
    """

    def __init__(
        self,
        costs: StepCosts,
        ladder: Ladder,
        clock: VirtualClock,
        lengths: Mapping[int, int] | Sequence[int],
        *,
        slowdown: Callable[[float], float],
        jitter: float,
        rng: np.random.Generator,
        next_arrival: Callable[[], float],
    ) -> None:
        self._costs, self._ladder, self._clock, self._lengths = costs, ladder, clock, lengths
        self._slowdown, self._jitter, self._rng = slowdown, jitter, rng
        self._next_arrival = next_arrival
        self._draws: list[float] = []

    def _noise(self) -> float:
        """One draw of mean 1."""
        if not self._jitter:
            return 1.0
        if not self._draws:
            self._draws = self._rng.lognormal(-(self._jitter**2) / 2, self._jitter, 4096).tolist()
        return self._draws.pop()

    def _pass(self, line: Line, level: int, num_steps: int = 1) -> None:
        fixed, slope = line
        profiled = fixed + self._ladder.depths[level] * slope
        noise = 1.0 + (self._noise() - 1.0) / math.sqrt(num_steps)
        self._clock.now_ms += num_steps * profiled * self._slowdown(self._clock.now_ms) * noise

    def extend(self, _ticket: Ticket, level: int, first: int, num_tokens: int, /) -> None:
        """Let a prefill pass."""
        self._pass(self._costs.prefill_line(num_tokens, first), level)

    def begin(self, ticket: Ticket, /) -> bool:
        """Whether the answer has one token only."""
        return self._lengths[ticket.number] <= 1

    def decode(self, tickets: Sequence[Ticket], level: int, num_steps: int, /) -> tuple[int, Sequence[Ticket]]:
        """Let a block of steps pass, up to the first end or the next arrival."""
        lefts = [self._lengths[ticket.number] - ticket.num_new for ticket in tickets]
        sum_kv = sum(ticket.num_tokens for ticket in tickets)
        fixed, slope = self._costs.decode_line(len(tickets), sum_kv)
        step_ms = (fixed + self._ladder.depths[level] * slope) * self._slowdown(self._clock.now_ms)
        until = min(num_steps, (self._next_arrival() - self._clock.now_ms) / step_ms)
        taken = min(*lefts, max(1, math.ceil(until)))
        self._pass(self._costs.decode_line(len(tickets), sum_kv + len(tickets) * (taken - 1) / 2), level, taken)
        return taken, [ticket for ticket, left in zip(tickets, lefts, strict=True) if left == taken]

    def release(self, _ticket: Ticket, /) -> None:
        """Nothing is held."""

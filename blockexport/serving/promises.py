"""What a request is told when its turn comes, and whether it was kept."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.quantile import Coverage, QuantileTracker
from blockexport.routing.step import StepPlan
from blockexport.routing.ticket import Ticket
from blockexport.serving.service import Promise

_RATE = 0.05
_FIRST_QUANTILE = math.log(2.0)
_BROKEN = math.log(2.0)
"""Score of a request that was promised a bound and ended before its own end."""


class Promises:
    """Predicts when answers will be complete, and bounds it by how such predictions have held.

    A prediction lets those that run go on as they do now, beside the new one. What comes later is not known, and is
    part of the error whose quantile makes the bound: after each answer `QuantileTracker` moves it by its own mistake.

    Args:
        ladder: the levels.
        latency: what steps take at present.
        lengths: how long answers become.
        alpha: share of requests that may take longer than their bound.

    Attributes:
        coverage: how the bounds have held.
    """

    def __init__(self, ladder: Ladder, latency: OnlineLatency, lengths: LengthPredictor, alpha: float) -> None:
        self._ladder, self._latency, self._lengths = ladder, latency, lengths
        # Half the share: the quantile still moves when it is right, and at least as many are to hold.
        self._quantile = QuantileTracker(alpha / 2, _RATE, _FIRST_QUANTILE)
        self._open: dict[int, tuple[int, float, float, float]] = {}
        self.coverage = Coverage()

    def make(self, plan: StepPlan, running: Sequence[Ticket], now_ms: float) -> Promise:
        """The promise to a request whose prompt is about to be run."""
        ticket = plan.tickets[0]
        waited_ms = now_ms - ticket.arrived_ms
        factor = math.exp(self._quantile.value)
        times = [self._end_ms(ticket, level, running) for level in range(len(self._ladder.depths))]
        # Waiting is over, and certain.
        predicted, bounds = [waited_ms + time for time in times], [waited_ms + factor * time for time in times]
        level = plan.level
        self._open[ticket.number] = (level, waited_ms, times[level], bounds[level])
        return Promise(
            level=self._ladder.names[level],
            predicted_ms=predicted[level],
            bound_ms=bounds[level],
            reason=plan.why,
            alternatives=tuple(self._alternatives(level, ticket, predicted, bounds)),
        )

    def keep(self, ticket: Ticket, now_ms: float, *, is_whole: bool) -> bool | None:
        """Note how a request ended; whether the promise was kept, None if there was none."""
        found = self._open.pop(ticket.number, None)
        if found is None:
            return None
        level, waited_ms, predicted_ms, bound_ms = found
        observed_ms = now_ms - ticket.arrived_ms
        score = math.log(max(observed_ms - waited_ms, 1e-3) / predicted_ms) if is_whole else _BROKEN
        self._quantile.observe(score)
        is_kept = is_whole and observed_ms <= bound_ms
        self.coverage.observe(level, now_ms, is_within=is_kept)
        return is_kept

    def forget(self, ticket: Ticket) -> None:
        """Drop a promise that its caller gave up."""
        self._open.pop(ticket.number, None)

    def _alternatives(
        self, level: int, ticket: Ticket, predicted: Sequence[float], bounds: Sequence[float]
    ) -> list[Mapping[str, Any]]:
        limit_ms = ticket.end_by_ms - ticket.arrived_ms
        return [
            {"level": name, "predicted_ms": predicted[i], "bound_ms": bounds[i], "feasible": bounds[i] <= limit_ms}
            for i, name in enumerate(self._ladder.names)
            if i != level
        ]

    def _end_ms(self, ticket: Ticket, level: int, running: Sequence[Ticket]) -> float:
        """From now to the last token at a level, if the others go on at theirs until they end."""
        depths, latency = self._ladder.depths, self._latency
        costs, factor = latency.costs, latency.mean_factor
        fixed, slope = costs.prefill_line(ticket.prompt_tokens - ticket.num_prefilled, ticket.num_prefilled)
        time_ms = factor("prefill", level) * (fixed + depths[level] * slope)
        steps = self._lengths.remaining(0, ticket.max_new_tokens) - 1
        remaining = self._lengths.remaining
        rows = sorted((remaining(row.num_new, row.max_new_tokens), row.level, row.num_tokens) for row in running)
        done = 0.0
        while done < steps:
            until = min(steps, rows[0][0]) if rows else steps
            at_levels: dict[int, list[float]] = {level: [ticket.prompt_tokens]}
            for _, other, num_tokens in rows:
                at_levels.setdefault(other, []).append(num_tokens)
            for other, tokens in at_levels.items():
                sum_kv = sum(tokens) + len(tokens) * (done + until) / 2
                fixed, slope = costs.decode_line(len(tokens), sum_kv)
                time_ms += (until - done) * factor("decode", other) * (fixed + depths[other] * slope)
            done = until
            rows = [row for row in rows if row[0] > done]
        return time_ms

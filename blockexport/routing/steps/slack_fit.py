"""SlackFit of SuperServe (arXiv 2312.16733), carried over from single passes to answers of many steps."""

from dataclasses import dataclass, replace

from blockexport.routing.step import BatchState, EarliestDueFirst, StepPlan
from blockexport.routing.ticket import Ticket
from blockexport.routing.turn import row_level, take_turn


@dataclass(frozen=True, slots=True)
class SlackFit(EarliestDueFirst):
    """Of the (level, rows) pairs whose latency comes closest below the slack of the most urgent, the widest.

    The latencies of all pairs, each that of the rest of the most urgent request in a batch so wide, are put into
    buckets of equal size. The bucket just below the slack is taken, and in it the pair with the most rows, then the
    deepest. Where the paper dispatches a batch once, this is decided anew before each step. Queue order and shedding
    are those of the other policies.

    Attributes:
        num_buckets: buckets.
    """

    num_buckets: int = 16

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "slackfit"

    def decide(self, state: BatchState, /) -> StepPlan:
        """Serve in the pair's level and width."""
        leader = min([*state.running[:1], *state.waiting[:1]], key=lambda ticket: ticket.due_ms)
        pairs = self._pairs(state, leader)
        slack_ms = leader.finish_by_ms(leader.num_new + 1) - state.now_ms
        least, most = min(pairs)[0], max(pairs)[0]
        width = max((most - least) / self.num_buckets, 1e-9)
        fitting = [pair for pair in pairs if pair[0] <= slack_ms] or [min(pairs)]
        bucket = int((max(fitting)[0] - least) / width)
        _, rows, minus_level = max(
            (pair for pair in fitting if int((pair[0] - least) / width) == bucket), key=lambda pair: pair[1:]
        )
        narrowed = replace(state, max_rows=max(rows, len(state.running)))
        facts = {"slack_ms": slack_ms, "rows": rows}
        why = "the bucket below the slack of the most urgent"
        levels = [row_level(row, -minus_level) for row in state.running]
        return take_turn(narrowed, levels, lambda _ticket: -minus_level, why, careful=True, facts=facts)

    def _pairs(self, state: BatchState, leader: Ticket) -> list[tuple[float, int, int]]:
        """Latency, rows and negative level of each pair."""
        left = state.lengths.remaining(leader.num_new, leader.max_new_tokens)
        fixed, slope = (0.0, 0.0) if leader.num_new else state.latency.prefill_line(leader.prompt_tokens)
        kv = leader.prompt_tokens + leader.num_new
        pairs = []
        for rows in range(1, state.max_rows + 1):
            step_fixed, step_slope = state.latency.decode_line(rows, rows * kv)
            for level, depth in enumerate(state.ladder.depths):
                pairs.append((fixed + left * step_fixed + depth * (slope + left * step_slope), rows, -level))
        return pairs

"""Who is in time at which depth, and how long the running can be held up."""

from collections.abc import Sequence

from blockexport.routing.step import BatchState
from blockexport.routing.ticket import Ticket

LOOK_AHEAD = 16

_INF = float("inf")


class Rows:
    """What the running requests still need, at the present speed.

    Attributes:
        left: steps, by request, as far as can be said.
        limits: the greatest depth at which each is in time if nothing changes.
        step: a step, as a line over depth.
        sum_kv: tokens in their caches together.
    """

    __slots__ = ("_slack", "_state", "left", "limits", "step", "sum_kv")

    left: list[float]
    limits: list[float]

    def __init__(self, state: BatchState) -> None:
        now, remaining = state.now_ms, state.lengths.remaining
        self._state = state
        self.sum_kv = sum(row.num_tokens for row in state.running)
        self.step = fixed, slope = state.latency.decode_line(len(state.running), self.sum_kv)
        self.left, self._slack, self.limits = [], [], []
        for row in state.running:
            left = remaining(row.num_new, row.max_new_tokens)
            slack = row.finish_by_ms(row.num_new + left) - now
            self.left.append(left)
            self._slack.append(slack)
            self.limits.append((min(slack / left, row.gap_ms) - fixed) / slope)

    def room_ms(self, levels: Sequence[int]) -> float:
        """How long all can be held up, each at its level, if one row joins them; those late anyhow do not count."""
        num_rows, depths = len(levels), self._state.ladder.depths
        fixed, slope = self._state.latency.decode_line(num_rows + 1, self.sum_kv * (num_rows + 1) / max(1, num_rows))
        room = _INF
        for row, level, left, slack, limit in zip(
            self._state.running, levels, self.left, self._slack, self.limits, strict=True
        ):
            if depths[level] <= limit:
                step_ms = fixed + depths[level] * slope
                room = min(room, slack - left * step_ms, row.gap_ms - step_ms)
        return room


def fits(state: BatchState, ticket: Ticket, level: int, rows: Rows, room_ms: float) -> bool:
    """Whether a waiting request, taken in now at a level, is in time and makes nobody late."""
    depth, latency = state.ladder.depths[level], state.latency
    fixed, slope = latency.prefill_line(ticket.prompt_tokens)
    prompt_ms = fixed + depth * slope
    steps = state.lengths.remaining(0, ticket.max_new_tokens) - 1
    fixed, slope = latency.decode_line(len(state.running) + 1, rows.sum_kv + ticket.prompt_tokens + steps / 2)
    step_ms = fixed + depth * slope
    first_ms = state.now_ms + prompt_ms
    return (
        prompt_ms <= room_ms
        and first_ms <= ticket.first_by_ms
        and first_ms + steps * step_ms <= ticket.end_by_ms
        and step_ms <= min(ticket.gap_ms, ticket.tpot_ms)
    )

"""Which of the waiting requests can be taken in without breaking what the running ones were promised."""

from collections.abc import Sequence

from blockexport.routing.step import BatchState
from blockexport.routing.ticket import Ticket

LOOK_AHEAD = 16


def room_ms(state: BatchState, rows: Sequence[Ticket], depth: int, num_more: int = 1) -> float:
    """How long the running requests can be held up if their steps then have `num_more` rows more.

    Requests that are late even without that do not count.
    """
    lengths, now = state.lengths, state.now_ms
    sum_kv = sum(row.num_tokens for row in rows)
    fixed, slope = state.latency.decode_line(len(rows), sum_kv)
    alone_ms = fixed + depth * slope
    fixed, slope = state.latency.decode_line(len(rows) + num_more, sum_kv * (1 + num_more / max(1, len(rows))))
    step_ms = fixed + depth * slope
    room = float("inf")
    for row in rows:
        left = lengths.remaining(row.num_new, row.max_new_tokens)
        slack = row.finish_by_ms(row.num_new + left) - now
        if left * alone_ms <= slack:
            room = min(room, slack - left * step_ms)
    return room


def first_that_fits(state: BatchState, depth: int) -> Ticket | None:
    """The first of the waiting, within a short look-ahead, that can be in time at a depth and makes nobody late."""
    rows, now, latency = state.running, state.now_ms, state.latency
    room = room_ms(state, rows, depth)
    sum_kv = sum(row.num_tokens for row in rows)
    for ticket in state.waiting[:LOOK_AHEAD]:
        fixed, slope = latency.prefill_line(ticket.prompt_tokens)
        prompt_ms = fixed + depth * slope
        if prompt_ms > room:
            continue
        left = state.lengths.remaining(0, ticket.max_new_tokens)
        fixed, slope = latency.decode_line(len(rows) + 1, sum_kv + ticket.prompt_tokens + left / 2)
        if now + prompt_ms <= ticket.first_by_ms:
            if now + prompt_ms + (left - 1) * (fixed + depth * slope) <= ticket.end_by_ms:
                return ticket
    return None

"""Whether a request is taken in, and when to come back if it is not."""

from dataclasses import dataclass

from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import BatchState
from blockexport.routing.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a request.

    Attributes:
        ticket: of the request.
        is_admitted: whether it waits now.
        reason: one line for people.
        retry_after_ms: when it was refused for want of room: after which time there should be some.
    """

    ticket: Ticket
    is_admitted: bool
    reason: str
    retry_after_ms: float | None = None


def is_hopeless(ticket: Ticket, depth: int, now_ms: float, latency: OnlineLatency, lengths: LengthPredictor) -> bool:
    """Whether a request would be late even with the host to itself from now on, at a depth, by what is likely."""
    left = lengths.remaining(ticket.num_new, ticket.max_new_tokens)
    first_ms, steps = 0.0, left
    if not ticket.num_new:
        fixed, slope = latency.prefill_line(ticket.prompt_tokens - ticket.num_prefilled, ticket.num_prefilled)
        first_ms, steps = fixed + depth * slope, left - 1
        if now_ms + first_ms > ticket.first_by_ms:
            return True
    fixed, slope = latency.decode_line(1, ticket.prompt_tokens + ticket.num_new + steps / 2)
    return now_ms + first_ms + steps * (fixed + depth * slope) > ticket.finish_by_ms(ticket.num_new + left)


def retry_after_ms(state: BatchState, depth: int) -> float:
    """When the first of the running answers should have ended at a depth, so that the queue moves."""
    rows = state.running or state.waiting[:1]
    steps = min(state.lengths.remaining(row.num_new, row.max_new_tokens) for row in rows)
    fixed, slope = state.latency.decode_line(len(rows), sum(row.prompt_tokens + row.num_new for row in rows))
    return steps * (fixed + depth * slope)

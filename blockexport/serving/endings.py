"""How requests end, in words and numbers for their callers."""

from collections.abc import Mapping

from blockexport.routing.ladder import Ladder
from blockexport.routing.ticket import Ticket
from blockexport.serving.service import Ending, Outcome

_REASONS: Mapping[Outcome, str] = {
    "served": "complete",
    "truncated": "its budget was over; these are the tokens there were",
    "late": "its budget could no longer be kept",
    "shed": "its budget could no longer be kept when its turn came",
    "cancelled": "given up by its caller",
    "failed": "no level that it accepts could run it",
}


def ending_of(
    ticket: Ticket | None,
    outcome: Outcome,
    ladder: Ladder,
    observed_ms: float,
    *,
    stopped: bool,
    reason: str = "",
    retry_after_ms: float | None = None,
) -> Ending:
    """The ending of a request.

    Args:
        ticket: of the request; None if it never had one.
        outcome: how it ended.
        ladder: the levels.
        observed_ms: from entry to now.
        stopped: whether a stop token ended it.
        reason: one line; "" for the usual one of the outcome.
        retry_after_ms: when to try again.
    """
    tokens_at: dict[str, int] = {}
    num_switches, ttft_ms, is_in_time = 0, None, False
    if ticket is not None:
        tokens_at = dict(zip(ladder.names, ticket.tokens_at, strict=True))
        num_switches = ticket.num_switches
        ttft_ms = ticket.first_ms - ticket.arrived_ms if ticket.num_new else None
        is_in_time = outcome == "served" and ticket.kept()
    return Ending(
        outcome=outcome,
        finish_reason=("stop" if stopped else "length") if outcome == "served" else None,
        reason=reason or _REASONS[outcome],
        tokens_at=tokens_at,
        num_switches=num_switches,
        ttft_ms=ttft_ms,
        observed_ms=observed_ms,
        is_in_time=is_in_time,
        retry_after_ms=retry_after_ms,
    )

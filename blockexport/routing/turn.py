"""The usual turn: take somebody in if that breaks no promise, else go on with the most urgent answers."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from blockexport.routing.fit import LOOK_AHEAD, Rows, fits
from blockexport.routing.step import BatchState, StepPlan
from blockexport.routing.ticket import Ticket

NO_FACTS: Mapping[str, Any] = MappingProxyType({})


def take_turn(
    state: BatchState,
    levels: Sequence[int],
    level_for: Callable[[Ticket], int],
    why: str,
    *,
    careful: bool,
    facts: Mapping[str, Any] = NO_FACTS,
) -> StepPlan:
    """Take in one of the waiting, else go on.

    Args:
        state: what runs and waits.
        levels: of the running.
        level_for: the level of one of the waiting.
        why: for the plan.
        careful: take in the first who can be in time and makes nobody late; False takes in the first.
        facts: for the plan.
    """
    if state.has_room:
        head = _first_that_fits(state, levels, level_for) if careful else state.waiting[0]
        if head is None and not state.running:
            head = state.waiting[0]
        if head is not None:
            return StepPlan("prefill", (head,), min(level_for(head), head.shallowest), why, facts)
    return go_on(state, levels, why, facts)


def _first_that_fits(state: BatchState, levels: Sequence[int], level_for: Callable[[Ticket], int]) -> Ticket | None:
    rows = Rows(state)
    room_ms = rows.room_ms(levels)
    ahead = state.waiting[:LOOK_AHEAD]
    return next((ticket for ticket in ahead if fits(state, ticket, level_for(ticket), rows, room_ms)), None)


def go_on(state: BatchState, levels: Sequence[int], why: str, facts: Mapping[str, Any] = NO_FACTS) -> StepPlan:
    """Go on with the most urgent answer, and with all others that run at its level."""
    rows = tuple([row for row, level in zip(state.running, levels, strict=True) if level == levels[0]])
    return StepPlan("decode", rows, levels[0], why, facts)


def row_level(row: Ticket, wanted: int, max_missing: int = 0) -> int:
    """The level nearest to what is wanted that a running request can go on at.

    Not above what its cache is filled for, but for `max_missing` tokens that would be run again; not below its floor.
    """
    level = min(wanted, row.shallowest)
    while level < row.level and row.missing(level) > max_missing:
        level += 1
    return level

"""The usual turn: take somebody in if that breaks no promise, else go on with the most urgent answers."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from blockexport.routing.fit import first_that_fits
from blockexport.routing.step import BatchState, StepPlan
from blockexport.routing.ticket import Ticket

NO_FACTS: Mapping[str, Any] = MappingProxyType({})


def serve_at(state: BatchState, level: int, why: str, *, careful: bool, facts: Mapping[str, Any] = NO_FACTS) -> StepPlan:
    """Run everything at one level.

    Args:
        state: what runs and waits.
        level: index of the level.
        why: for the plan.
        careful: take in only who can be in time and makes nobody late; False takes in the first.
        facts: for the plan.
    """
    if state.has_room:
        depth = state.ladder.depths[level]
        head = first_that_fits(state, depth) if careful else state.waiting[0]
        if head is None and not state.running:
            head = state.waiting[0]
        if head is not None:
            return StepPlan("prefill", (head,), min(level, head.shallowest), why, facts)
    return go_on(state, [row_level(row, level) for row in state.running], why, facts)


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

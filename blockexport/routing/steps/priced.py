"""Ours: engine time has a price while others wait; each request takes the level that is worth it, if it is in time.

Serving as much worth as possible within limited time is a knapsack, and a price of time solves it: a request takes a
deeper level exactly if the worth that it adds exceeds the price of the time that it takes, and is left waiting if no
level is worth its time. The price is what the engine has earned for a millisecond of late, more the more requests wait;
with nobody waiting time is free, and everyone runs at the deepest level that is in time.

Times are lines over depth, so the deepest depth at which a request is in time is one division.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from blockexport.routing.fit import LOOK_AHEAD, Rows
from blockexport.routing.step import BatchState, EarliestDueFirst, StepPlan
from blockexport.routing.ticket import Ticket
from blockexport.routing.turn import go_on, row_level


class _Pick(NamedTuple):
    """A waiting request that is worth its time: at which level, and the greatest depth at which it is in time."""

    ticket: Ticket
    level: int
    limit: float
    prompt_ms: float


@dataclass(frozen=True, slots=True)
class Priced(EarliestDueFirst):
    """Deepest level worth its time, in time for everybody who shares the step.

    Attributes:
        price_factor: price of a millisecond, as a multiple of what it has earned; the risk knob.
        max_missing: most tokens that are run again to take a running answer up.
        margin: share of the depth that must be to spare before an answer is taken up.
        dwell_tokens: tokens between two changes of an answer's level upwards.
    """

    price_factor: float = 1.5
    max_missing: int = 64
    margin: float = 0.1
    dwell_tokens: int = 24

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "priced"

    def decide(self, state: BatchState, /) -> StepPlan:
        """Take in the first of the waiting that is worth its time and breaks no promise, else go on."""
        num_waiting = len(state.waiting)
        price = self.price_factor * state.earned_per_ms * num_waiting / (num_waiting + 1)
        rows = Rows(state)
        levels = self._row_levels(state, rows, price)
        if state.has_room:
            found = self._take_in(state, rows, levels, price)
            if found is not None:
                facts = {"price_per_ms": price, "depth_limit": found.limit}
                return StepPlan("prefill", (found.ticket,), found.level, "worth its time and in time", facts)
        facts = {"price_per_ms": price, "depth_limit": rows.limits[0]}
        return go_on(state, levels, "the most urgent answer, and those at its level", facts)

    def _row_levels(self, state: BatchState, rows: Rows, price: float) -> list[int]:
        """Down at once; up only with slack, some tokens from the last change and from the end, and if cheap."""
        ladder, dwell = state.ladder, self.dwell_tokens
        share = price * rows.step[1] / max(1, len(rows.left))
        levels = []
        for row, left, limit in zip(state.running, rows.left, rows.limits, strict=True):
            level = max(row.frontier.at(share * (row.num_new + left) / row.weight), ladder.deepest_within(limit))
            if level < row.level:
                is_settled = row.num_new - row.switched_at >= dwell and left >= dwell
                has_slack = ladder.depths[level] * (1 + self.margin) <= limit
                level = row_level(row, level, self.max_missing) if is_settled and has_slack else row.level
            levels.append(min(level, row.shallowest))
        return levels

    def _take_in(self, state: BatchState, rows: Rows, levels: list[int], price: float) -> _Pick | None:
        room_ms = rows.room_ms(levels)
        # With nobody running, time that nobody is worth is better given away than lost.
        for share in (1.0,) if state.running else (1.0, 0.5, 0.25, 0.125, 0.0):
            for pick in _worth_their_time(state, rows, levels, share * price):
                if pick.prompt_ms <= room_ms:
                    return pick
        if state.running:
            return None
        head = state.waiting[0]
        return _Pick(head, head.shallowest, 0.0, 0.0)


def _worth_their_time(state: BatchState, rows: Rows, levels: list[int], price: float) -> Iterator[_Pick]:
    """Of the first of the waiting those that can be in time, one after the other, at a level worth the price.

    Work ahead of a request is that of the running and of those picked before it, at their levels. It is shared with as
    many rows as there can be, but no request ends before its own prompt and steps have passed.
    """
    ladder, latency, now = state.ladder, state.latency, state.now_ms
    depths = ladder.depths
    waiting = state.waiting[:LOOK_AHEAD]
    num_rows = min(state.max_rows, len(levels) + len(waiting))
    shown = waiting[: num_rows - len(levels)]
    full = latency.decode_line(num_rows, rows.sum_kv + sum(ticket.prompt_tokens for ticket in shown))
    share_fixed, share_slope = full[0] / num_rows, full[1] / num_rows
    step_fixed, step_slope = latency.decode_line(len(levels) + 1, rows.sum_kv + waiting[0].prompt_tokens)
    work_ms = sum(
        left * (share_fixed + depths[level] * share_slope) for left, level in zip(rows.left, levels, strict=True)
    )
    factor, prompts_ms = latency.slowdown, 0.0
    for ticket in waiting:
        steps = state.lengths.remaining(0, ticket.max_new_tokens) - 1
        prompt_fixed, prompt_slope = ticket.prompt_line
        prompt_fixed, prompt_slope = factor * prompt_fixed, factor * prompt_slope
        cost_fixed, cost_slope = prompt_fixed + steps * share_fixed, prompt_slope + steps * share_slope
        slack = ticket.end_by_ms - now
        limit = min(
            (slack - prompts_ms - prompt_fixed - steps * step_fixed) / (prompt_slope + steps * step_slope),
            (slack - work_ms - cost_fixed) / cost_slope,
        )
        if ticket.has_pace:
            limit = min(
                limit,
                (ticket.first_by_ms - now - prompts_ms - prompt_fixed) / prompt_slope,
                (min(ticket.gap_ms, ticket.tpot_ms) - step_fixed) / step_slope,
            )
        if limit < depths[ticket.shallowest]:
            continue
        level = max(ticket.frontier.at(price * cost_slope / ticket.weight), ladder.deepest_within(limit))
        level = min(level, ticket.shallowest)
        cost_ms = cost_fixed + depths[level] * cost_slope
        if ticket.worth[level] * ticket.weight > price * cost_ms:
            prompt_ms = prompt_fixed + depths[level] * prompt_slope
            yield _Pick(ticket, level, limit, prompt_ms)
            work_ms += cost_ms
            prompts_ms += prompt_ms

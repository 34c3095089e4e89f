"""Runs single steps on an engine, keeps the books of the requests in them, and lets the latency model learn."""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from blockexport.errors import EngineFaultError
from blockexport.routing.ladder import Ladder
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.ticket import Ticket
from blockexport.serving.engine import StepEngine
from blockexport.serving.trace import RanStep


class StepRunner:
    """Steps of one engine.

    Args:
        engine: runs them.
        ladder: the levels.
        latency: told how long each took.
        clock: milliseconds, monotonic.
        on_ran: told of each.
    """

    def __init__(
        self,
        engine: StepEngine,
        ladder: Ladder,
        latency: OnlineLatency,
        clock: Callable[[], float],
        on_ran: Callable[[RanStep], None] = lambda _step: None,
    ) -> None:
        self._engine, self._depths, self._latency, self._clock = engine, ladder.depths, latency, clock
        self._on_ran = on_ran
        self._ended_ms: float | None = None

    def rest(self) -> None:
        """There is nothing to do; the time until there is counts for no step."""
        self._ended_ms = None

    def _begin_ms(self) -> float:
        """When a step begins: with the end of the one before, for what is done between them takes its time too."""
        return self._clock() if self._ended_ms is None else self._ended_ms

    def tokens_within(self, limit_ms: float, first: int, rest: int, level: int) -> int:
        """How many of the next `rest` tokens of a prompt can be run in a time, at least one."""

        def predicted_ms(num_tokens: int) -> float:
            fixed, slope = self._latency.prefill_line(num_tokens, first)
            return fixed + self._depths[level] * slope

        return max(1, bisect_right(range(1, rest + 1), limit_ms, key=predicted_ms))

    def extend(self, ticket: Ticket, level: int, first: int, num_tokens: int) -> None:
        """Run a piece of a request's history that a level lacks.

        Raises:
            EngineFaultError: the engine failed; what it may have overwritten counts as lacking.
        """
        begun_ms = self._begin_ms()
        _fill(ticket, level, first)
        self._engine.extend(ticket, level, first, num_tokens)
        self._ended_ms = self._clock()
        took_ms = self._ended_ms - begun_ms
        fixed, slope = self._latency.costs.prefill_line(num_tokens, first)
        profiled_ms = fixed + self._depths[level] * slope
        self._on_ran(RanStep("prefill", level, 1, num_tokens, first, profiled_ms, self._latency.slowdown, took_ms))
        self._latency.observe("prefill", level, profiled_ms, took_ms, begun_ms + took_ms)
        ticket.busy_ms += took_ms
        _fill(ticket, level, first + num_tokens)

    def begin(self, ticket: Ticket) -> bool:
        """Hand out the first token; whether the answer ends with it."""
        has_ended = self._engine.begin(ticket)
        ticket.hand_out(1, self._clock())
        ticket.first_ms = ticket.last_ms
        return has_ended

    def decode(self, tickets: Sequence[Ticket], level: int, num_steps: int) -> Sequence[Ticket]:
        """Hand out some tokens of each request; those that ended.

        Raises:
            EngineFaultError: the engine failed; the tokens before are handed out.
        """
        for ticket in tickets:
            if missing := ticket.missing(level):
                self.extend(ticket, level, ticket.filled[level], missing)
            if ticket.level != level:
                ticket.num_switches += 1
                ticket.switched_at = ticket.num_new
                ticket.level = level
        begun_ms = self._begin_ms()
        try:
            taken, ended = self._engine.decode(tickets, level, num_steps)
        except EngineFaultError as error:
            if error.steps_taken:
                self._account(tickets, level, error.steps_taken, begun_ms)
            raise
        self._account(tickets, level, taken, begun_ms)
        return ended

    def _account(self, tickets: Sequence[Ticket], level: int, taken: int, begun_ms: float) -> None:
        """Enter steps that were run into the books."""
        num_rows, sum_kv = len(tickets), sum(ticket.num_tokens for ticket in tickets)
        now = self._ended_ms = self._clock()
        fixed, slope = self._latency.costs.decode_line(num_rows, sum_kv + num_rows * (taken - 1) / 2)
        profiled_ms = taken * (fixed + self._depths[level] * slope)
        ran = RanStep("decode", level, num_rows, taken, sum_kv, profiled_ms, self._latency.slowdown, now - begun_ms)
        self._on_ran(ran)
        self._latency.observe("decode", level, profiled_ms, now - begun_ms, now)
        for ticket in tickets:
            # Within a block tokens come evenly, as far as this sees; the first of it may have waited for others.
            first_gap_ms = begun_ms - ticket.last_ms + (now - begun_ms) / taken
            ticket.longest_gap_ms = max(ticket.longest_gap_ms, first_gap_ms)
            ticket.busy_ms += (now - begun_ms) / num_rows
            ticket.hand_out(taken, now)
            _fill(ticket, level, ticket.num_tokens)


def _fill(ticket: Ticket, level: int, num_tokens: int) -> None:
    """What a level has run, all shallower ones have."""
    ticket.filled[level:] = [num_tokens] * (len(ticket.filled) - level)

"""One queue, one engine: takes requests in, runs what a policy says, and ends what cannot be in time."""

from bisect import insort
from collections.abc import Callable
from dataclasses import replace

from blockexport.errors import ConfigError, EngineFaultError
from blockexport.routing.contract import Contract
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import BatchState, StepPlan, StepPolicy
from blockexport.routing.ticket import Ticket
from blockexport.routing.turn import NO_FACTS
from blockexport.serving.admission import Admission, is_hopeless, retry_after_ms
from blockexport.serving.breakers import Breakers
from blockexport.serving.earnings import Earnings
from blockexport.serving.engine import StepEngine
from blockexport.serving.service import Outcome
from blockexport.serving.step_runner import StepRunner
from blockexport.serving.trace import RanStep

_MOST_FAULTS = 32
"""Faults of a request without a token in between, after which it is given up."""


class Scheduler:
    """Serves requests step by step. Single-threaded: whoever drives it calls `submit`, `cancel` and `step` in turn.

    Args:
        engine: runs the steps.
        policy: says what comes next.
        ladder: the levels.
        latency: predicts steps, and learns from them.
        lengths: predicts the lengths of answers, and learns from them.
        clock: milliseconds, monotonic.
        max_rows: most requests that share a step.
        max_waiting: most requests that wait.
        block_steps: tokens between two decisions.
        max_stall_ms: longest time that a piece of a prompt may hold up running answers, as predicted; None for
            whole prompts.
        on_end: told of each request that ends, however it does.
        on_plan: told of each decision before it is carried out.
        on_ran: told of each step after it.

    Attributes:
        breakers: of the levels.
        running: requests whose prompt was run, by due time.
        waiting: requests whose prompt was not, in the order of service.
    """

    def __init__(
        self,
        engine: StepEngine,
        policy: StepPolicy,
        ladder: Ladder,
        latency: OnlineLatency,
        lengths: LengthPredictor,
        *,
        clock: Callable[[], float],
        max_rows: int = 4,
        max_waiting: int = 64,
        block_steps: int = 8,
        max_stall_ms: float | None = None,
        on_end: Callable[[Ticket, Outcome], None] = lambda _ticket, _outcome: None,
        on_plan: Callable[[StepPlan], None] = lambda _plan: None,
        on_ran: Callable[[RanStep], None] = lambda _step: None,
    ) -> None:
        if min(max_rows, max_waiting, block_steps) < 1:
            msg = f"max_rows {max_rows}, max_waiting {max_waiting}, block_steps {block_steps}; each is 1 at least"
            raise ConfigError(msg)
        if max_stall_ms is not None and not max_stall_ms > 0:
            msg = f"max_stall_ms is {max_stall_ms}; give a positive number of milliseconds, or None for whole prompts"
            raise ConfigError(msg)
        self._engine, self._policy, self._ladder = engine, policy, ladder
        self._latency, self._lengths, self._clock = latency, lengths, clock
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._block_steps, self._max_stall_ms = block_steps, max_stall_ms
        self._on_end, self._on_plan = on_end, on_plan
        self._runner = StepRunner(engine, ladder, latency, clock, on_ran)
        self._shallowest = policy.shallowest(ladder)
        self.breakers = Breakers(len(ladder.depths))
        self._earnings = Earnings()
        self._num_arrived = 0
        self._begun: Ticket | None = None  # its prompt was run in part
        self._has_just_stalled = False
        self.running: list[Ticket] = []
        self.waiting: list[Ticket] = []

    def submit(
        self, prompt_tokens: int, max_new_tokens: int, contract: Contract, *, arrived_ms: float | None = None
    ) -> Admission:
        """Queue a request, or refuse it; if only for want of room, with the time after which to try again.

        Args:
            prompt_tokens: to be run before the first new token.
            max_new_tokens: most tokens of the answer.
            contract: its terms.
            arrived_ms: when its clock began; None for now.

        Raises:
            RequestError: the ladder cannot keep the contract at any time.
        """
        now = self._clock()
        ticket = Ticket(
            number=self._num_arrived,
            arrived_ms=now if arrived_ms is None else arrived_ms,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
            contract=contract,
            worth=self._ladder.worth_of(contract),
            frontier=self._ladder.frontier_of(contract),
            shallowest=self._ladder.shallowest_for(contract),
            prompt_line=self._latency.costs.prefill_line(prompt_tokens),
        )
        self._num_arrived += 1
        if self._policy.sheds and self._is_hopeless(ticket, now):
            if self._is_hopeless(ticket, ticket.arrived_ms):
                return self._refuse(ticket, "no level keeps the budget, even with the host to itself", None)
            return self._refuse(ticket, "its budget was over before it could be queued", self.room_in_ms())
        if len(self.waiting) >= self._max_waiting:
            least = min(self.waiting, key=lambda other: other.contract.priority)
            if least.contract.priority >= contract.priority:
                reason = f"{len(self.waiting)} requests wait already, as many as may"
                return self._refuse(ticket, reason, self.room_in_ms())
            self.end(least, "shed")
        insort(self.waiting, ticket, key=self._place)
        return Admission(ticket, is_admitted=True, reason="waits for its turn")

    def cancel(self, ticket: Ticket) -> None:
        """End a request that its caller gave up; what it holds is free before the next step."""
        self.end(ticket, "cancelled")

    def room_in_ms(self) -> float:
        """When the first of the running answers should have ended, so that the queue moves."""
        if not self.is_busy:
            return 0.0
        return retry_after_ms(self._state(self._clock()), self._ladder.depths[self._shallowest])

    @property
    def is_busy(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self.running or self.waiting)

    def step(self) -> bool:
        """Decide and run one step; False when there is nothing to do, or no level that may run.

        An engine that fails costs its requests the time it took, and nothing else: another level goes on from the last
        token that was handed out.
        """
        now = self._clock()
        if self._policy.sheds:
            self._end_hopeless(now)
        if not self.is_busy:
            self._runner.rest()
            return False
        plan = self._around_faults(self._plan(now), now)
        if plan is None:
            self._runner.rest()
            return False
        self._on_plan(plan)
        num_new = [ticket.num_new for ticket in plan.tickets]
        try:
            if plan.kind == "prefill":
                self._prefill(plan.tickets[0], plan.level)
            else:
                self._decode(plan)
        except EngineFaultError as fault:
            self._note_fault(plan, fault, num_new)
        else:
            self.breakers.succeed(plan.level)
        return True

    def _around_faults(self, plan: StepPlan, now: float) -> StepPlan | None:
        """The plan, at another level if its own must not run; None if none may."""
        if self.breakers.all_closed:
            return plan
        floor = min(ticket.shallowest for ticket in plan.tickets)
        level = self.breakers.substitute(plan.level, floor, now)
        if level is None:
            if self.breakers.substitute(plan.level, len(self._ladder.depths) - 1, now) is not None:
                # Others can be served: who accepts no level that works must not hold them up.
                for ticket in plan.tickets:
                    self.end(ticket, "failed")
            return None
        if level == plan.level:
            return plan
        names = self._ladder.names
        why = f"{plan.why}; {names[level]} for {names[plan.level]}, which failed"
        return replace(plan, level=level, why=why)

    def _note_fault(self, plan: StepPlan, fault: EngineFaultError, num_new: list[int]) -> None:
        self._runner.rest()
        self.breakers.fail(plan.level, self._clock(), str(fault))
        for ticket, before in zip(plan.tickets, num_new, strict=True):
            ticket.num_faults = 1 if ticket.num_new > before else ticket.num_faults + 1
            if ticket.num_faults >= _MOST_FAULTS:
                self.end(ticket, "failed")

    def _plan(self, now: float) -> StepPlan:
        if self._begun is not None and not self._owes_decode:
            return StepPlan("prefill", (self._begun,), self._begun.level, "the rest of a prompt", NO_FACTS)
        return self._policy.decide(self._state(now))

    @property
    def _owes_decode(self) -> bool:
        return self._has_just_stalled and bool(self.running)

    def _state(self, now: float) -> BatchState:
        return BatchState(
            now_ms=now,
            ladder=self._ladder,
            latency=self._latency,
            lengths=self._lengths,
            running=self.running,
            waiting=self.waiting,
            max_rows=self._max_rows,
            may_prefill=self._begun is None and not self._owes_decode,
            earned_per_ms=self._earnings.per_ms,
        )

    def _refuse(self, ticket: Ticket, reason: str, retry_ms: float | None) -> Admission:
        self._on_end(ticket, "shed")
        return Admission(ticket, is_admitted=False, reason=reason, retry_after_ms=retry_ms)

    def _place(self, ticket: Ticket) -> tuple[int, float, int]:
        """Where in the queue: by priority, then by due time or arrival."""
        due_ms = ticket.due_ms if self._policy.order == "edf" else ticket.arrived_ms
        return -ticket.contract.priority, due_ms, ticket.number

    def _is_hopeless(self, ticket: Ticket, now: float) -> bool:
        depth = self._ladder.depths[min(self._shallowest, ticket.shallowest)]
        return is_hopeless(ticket, depth, now, self._latency, self._lengths)

    def _end_hopeless(self, now: float) -> None:
        """End what would only cost time: those about to be served, and those running that were not to finish anyhow."""
        while self.waiting and self.waiting[0] is not self._begun and self._is_hopeless(self.waiting[0], now):
            self.end(self.waiting[0], "shed")
        for ticket in list(self.running):
            if ticket.contract.on_miss != "finish" and self._is_hopeless(ticket, now):
                self.end(ticket, "truncated" if ticket.contract.on_miss == "truncate" else "late")

    def _prefill(self, ticket: Ticket, level: int) -> None:
        # Less than what was run of it, if another level than the one of the first piece goes on.
        first = ticket.filled[level]
        rest = ticket.prompt_tokens - first
        num_tokens = rest
        if self._max_stall_ms is not None and self.running:
            num_tokens = self._runner.tokens_within(self._max_stall_ms, first, rest, level)
        self._runner.extend(ticket, level, first, num_tokens)
        ticket.num_prefilled = first + num_tokens
        ticket.level = level
        self._has_just_stalled = self._max_stall_ms is not None
        self._begun = ticket if num_tokens < rest else None
        if self._begun is None:
            self.waiting.remove(ticket)
            insort(self.running, ticket, key=lambda row: row.due_ms)
            if self._runner.begin(ticket):
                self._complete(ticket)

    def _decode(self, plan: StepPlan) -> None:
        self._has_just_stalled = False
        for ticket in self._runner.decode(plan.tickets, plan.level, self._block_steps):
            self._complete(ticket)

    def _complete(self, ticket: Ticket) -> None:
        self._lengths.observe(ticket.num_new, ticket.max_new_tokens)
        if ticket.kept():
            self._earnings.observe(ticket.worth_sum / ticket.num_new * ticket.weight, ticket.busy_ms)
        self.end(ticket, "served")

    def end(self, ticket: Ticket, outcome: Outcome) -> None:
        """Forget a request, and tell of it, unless it has ended already."""
        for tickets in (self.running, self.waiting):
            if ticket in tickets:
                tickets.remove(ticket)
                self._begun = None if self._begun is ticket else self._begun
                self._engine.release(ticket)
                self._on_end(ticket, outcome)

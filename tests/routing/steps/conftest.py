"""States to decide about."""

from collections.abc import Callable
from typing import Any

import pytest

from blockexport.core.latency import LatencyBudget
from blockexport.routing.contract import Contract
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import BatchState
from blockexport.routing.ticket import Ticket

LADDER = Ladder(("d16", "d12", "d8", "d4"), (16, 12, 8, 4), {None: (1.0, 0.85, 0.55, 0.1)})
# A prompt token takes 0.01 ms a block; a step 0.04 ms a block and 0.01 for each row and block.
COSTS = StepCosts((0.0, 0.0, 0.0, 0.0, 0.01, 0.0), (0.0, 0.0, 0.04, 0.01, 0.0))


def _make_ticket(
    number: int, *, e2e_ms: float | None = None, prompt: int = 100, longest: int = 20, done: int = 0, **terms: Any
) -> Ticket:
    limits = {name: terms.pop(name) for name in ("ttft_ms", "tpot_ms", "gap_ms") if name in terms}
    budget = LatencyBudget(e2e_ms=e2e_ms, **limits) if e2e_ms is not None or limits else None
    contract = Contract(budget, **terms)
    ticket = Ticket(
        number=number,
        arrived_ms=0.0,
        prompt_tokens=prompt,
        max_new_tokens=longest,
        contract=contract,
        worth=LADDER.worth_of(contract),
        frontier=LADDER.frontier_of(contract),
        shallowest=LADDER.shallowest_for(contract),
        prompt_line=COSTS.prefill_line(prompt),
    )
    if done:
        ticket.num_prefilled, ticket.level = prompt, 0
        ticket.hand_out(done, 0.0)
        ticket.first_ms = 0.0
        ticket.filled = [ticket.num_tokens] * len(LADDER.depths)
    return ticket


def _make_state(
    running: list[Ticket], waiting: list[Ticket], *, now_ms: float = 0.0, earned_per_ms: float = 0.0, max_rows: int = 4
) -> BatchState:
    return BatchState(
        now_ms=now_ms,
        ladder=LADDER,
        latency=OnlineLatency(COSTS, len(LADDER.depths)),
        lengths=LengthPredictor(),
        running=sorted(running, key=lambda ticket: ticket.due_ms),
        waiting=sorted(waiting, key=lambda ticket: ticket.due_ms),
        max_rows=max_rows,
        earned_per_ms=earned_per_ms,
    )


@pytest.fixture(scope="session")
def make_ticket() -> Callable[..., Ticket]:
    return _make_ticket


@pytest.fixture(scope="session")
def make_state() -> Callable[..., BatchState]:
    return _make_state

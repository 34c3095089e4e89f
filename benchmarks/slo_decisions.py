"""How long our decision takes at the size that the project promises something for."""

import time
from typing import Any

import numpy as np
from slo_runs import percentiles

from blockexport.core.latency import LatencyBudget
from blockexport.routing.contract import Contract
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import BatchState
from blockexport.routing.steps.priced import Priced
from blockexport.routing.ticket import Ticket

NUM_LEVELS = 16
NUM_WAITING = 64
# One fewer than may share a step in bench_slo.py, so that there is room to decide about.
NUM_RUNNING = 3
NUM_STATES = 200
ROUNDS = 100
# Of no host in particular: how long a decision takes does not depend on them.
COSTS = StepCosts((1.0, 0.1, 0.0, 0.01, 0.005, 1e-6), (0.1, 0.01, 0.04, 0.02, 1e-5))


def _ticket(ladder: Ladder, number: int, rng: np.random.Generator, *, is_running: bool) -> Ticket:
    prompt, longest = int(rng.integers(16, 2048)), int(2 ** rng.integers(3, 9))
    contract = Contract(LatencyBudget(e2e_ms=float(rng.uniform(100, 5000))))
    worth, frontier = ladder.worth_of(contract), ladder.frontier_of(contract)
    line = COSTS.prefill_line(prompt)
    ticket = Ticket(number, 0.0, prompt, longest, contract, worth, frontier, NUM_LEVELS - 1, line)
    if is_running:
        ticket.num_prefilled, ticket.num_new, ticket.level = prompt, int(rng.integers(1, longest)), 0
        ticket.filled = [ticket.num_tokens] * NUM_LEVELS
    return ticket


def _state(ladder: Ladder, rng: np.random.Generator) -> BatchState:
    running = [_ticket(ladder, number, rng, is_running=True) for number in range(NUM_RUNNING)]
    waiting = [_ticket(ladder, NUM_RUNNING + n, rng, is_running=False) for n in range(NUM_WAITING)]
    waiting.sort(key=lambda ticket: ticket.due_ms)
    return BatchState(
        now_ms=50.0,
        ladder=ladder,
        latency=OnlineLatency(COSTS, NUM_LEVELS),
        lengths=LengthPredictor(),
        running=running,
        waiting=waiting,
        max_rows=NUM_RUNNING + 1,
        earned_per_ms=float(rng.uniform(0, 0.01)),
    )


def decision_times(seed: int) -> dict[str, Any]:
    """Microseconds of a decision over random states with room for one more, each decided many times."""
    rng = np.random.default_rng(seed)
    depths = tuple(range(2 * NUM_LEVELS, 0, -2))
    ladder = Ladder(
        tuple(f"d{depth}" for depth in depths), depths, {None: tuple(float((d / depths[0]) ** 0.5) for d in depths)}
    )
    policy, states = Priced(), [_state(ladder, rng) for _ in range(NUM_STATES)]
    spent = []
    for _ in range(ROUNDS):
        for state in states:
            begun = time.perf_counter_ns()
            policy.decide(state)
            spent.append((time.perf_counter_ns() - begun) / 1e3)
    warm = spent[NUM_STATES:]
    return {"levels": NUM_LEVELS, "waiting": NUM_WAITING, "running": NUM_RUNNING, "n": len(warm)} | percentiles(warm)

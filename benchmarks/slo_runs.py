"""One policy, one workload, one simulated host: what became of each request."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from slo_traces import Workload

from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import BatchState, StepPlan, StepPolicy
from blockexport.routing.ticket import Ticket
from blockexport.serving.scheduler import Outcome, Scheduler
from blockexport.serving.simulated import SimulatedEngine, VirtualClock


@dataclass(frozen=True, slots=True)
class Noise:
    """A neighbour that comes and goes, and jitter of each step."""

    factor: float = 1.0
    on_ms: float = 20_000.0
    off_ms: float = 60_000.0
    jitter: float = 0.0

    def slowdown(self, now_ms: float) -> float:
        """The true factor at a time."""
        return self.factor if now_ms % (self.on_ms + self.off_ms) >= self.off_ms else 1.0


QUIET = Noise()
NOISY = Noise(factor=1.7, jitter=0.08)


class TimedPolicy:
    """Any policy, its decisions timed."""

    def __init__(self, policy: StepPolicy) -> None:
        self._policy = policy
        self.name, self.order, self.sheds = policy.name, policy.order, policy.sheds
        self.shallowest = policy.shallowest
        self.spent_ns: list[int] = []

    def decide(self, state: BatchState) -> StepPlan:
        """The policy's plan."""
        begun = time.perf_counter_ns()
        plan = self._policy.decide(state)
        self.spent_ns.append(time.perf_counter_ns() - begun)
        return plan


class KnownLatency(OnlineLatency):
    """Knows the true slowdown instead of following it."""

    def __init__(self, costs: StepCosts, num_levels: int, truth: Callable[[], float]) -> None:
        super().__init__(costs, num_levels)
        self._truth = truth

    @property
    def slowdown(self) -> float:
        """The true factor now."""
        return self._truth()


@dataclass(slots=True)
class Run:
    """What became of the requests of one run, and what the decisions cost."""

    tickets: list[tuple[Ticket, Outcome]] = field(default_factory=list)
    spent_ns: list[int] = field(default_factory=list)
    coverage: Any = None


def simulate(
    policy: StepPolicy,
    workload: Workload,
    ladder: Ladder,
    costs: StepCosts,
    noise: Noise,
    *,
    max_rows: int,
    seed: int = 0,
    knows_all: bool = False,
    **knobs: Any,
) -> Run:
    """Serve a workload to its end."""
    clock, run, timed = VirtualClock(), Run(), TimedPolicy(policy)
    arrivals = [*workload.arrived_ms.tolist(), math.inf]
    coming = 0
    engine = SimulatedEngine(
        costs,
        ladder,
        clock,
        workload.new_tokens.tolist(),
        slowdown=noise.slowdown,
        jitter=noise.jitter,
        rng=np.random.default_rng(seed),
        next_arrival=lambda: arrivals[coming],
    )
    if knows_all:
        # It is told as the longest possible answer what the answer will be.
        workload = replace(workload, max_new_tokens=workload.new_tokens)
        lengths = LengthPredictor(least=len(workload) + 1)
        latency: OnlineLatency = KnownLatency(costs, len(ladder.depths), lambda: noise.slowdown(clock.now_ms))
    else:
        lengths, latency = LengthPredictor(), OnlineLatency(costs, len(ladder.depths))
    scheduler = Scheduler(
        engine,
        timed,
        ladder,
        latency,
        lengths,
        clock=clock,
        max_rows=max_rows,
        on_end=lambda ticket, outcome: run.tickets.append((ticket, outcome)),
        **knobs,
    )
    is_busy = False
    while is_busy or coming < len(workload):
        if not is_busy:
            clock.now_ms = max(clock.now_ms, arrivals[coming])
        while arrivals[coming] <= clock.now_ms:
            scheduler.submit(
                int(workload.prompt_tokens[coming]), int(workload.max_new_tokens[coming]), workload.contracts[coming]
            )
            coming += 1
        is_busy = scheduler.step()
    run.spent_ns, run.coverage = timed.spent_ns, latency.coverage
    return run


def summarise(run: Run, num_offered: int) -> dict[str, Any]:
    """The figures of one run; what was shed or refused counts as not in time."""
    served = [ticket for ticket, outcome in run.tickets if outcome == "served"]
    good = [ticket for ticket in served if ticket.kept()]
    return {
        "effective_quality": sum(t.worth_sum / t.num_new for t in good) / num_offered,
        "attainment": len(good) / num_offered,
    }

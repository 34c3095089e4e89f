"""One policy, one workload, one simulated host: what became of each request."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from slo_traces import Workload

from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.quantile import Coverage
from blockexport.routing.step import BatchState, StepPlan, StepPolicy
from blockexport.routing.ticket import Ticket
from blockexport.serving.promises import Promises
from blockexport.serving.scheduler import Outcome, Scheduler
from blockexport.serving.simulated import SimulatedEngine, VirtualClock

# 0.95 quantile of the standard normal distribution.
_NORMAL_P95 = 1.645
# A slowdown is followed once the estimate is this close to it.
CLOSE = 0.1


@dataclass(frozen=True, slots=True)
class Noise:
    """A neighbour that comes and goes, and jitter of each step."""

    name: str
    factor: float = 1.0
    off_ms: float = 60_000.0
    on_ms: float = 20_000.0
    jitter: float = 0.0

    def slowdown(self, now_ms: float) -> float:
        """The true factor at a time."""
        return self.factor if now_ms % (self.on_ms + self.off_ms) >= self.off_ms else 1.0


QUIET = Noise("quiet")
NOISY = Noise("noisy neighbour", factor=1.7, jitter=0.08)


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
    """What became of the requests of one run, what the decisions cost, and how the latency model did.

    Attributes:
        tickets: with how each ended.
        spent_ns: of each decision.
        coverage: of the bounds on blocks of steps.
        followed: after each step: engine time so far, estimate of the slowdown, truth.
        predicted_ms: of each request whose turn came, by number: what it was told then.
        promises: how the bounds of requests have held.
    """

    tickets: list[tuple[Ticket, Outcome]] = field(default_factory=list)
    spent_ns: list[int] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    followed: list[tuple[float, float, float]] = field(default_factory=list)
    predicted_ms: dict[int, float] = field(default_factory=dict)
    promises: Coverage = field(default_factory=Coverage)


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
    on_plan: Callable[[StepPlan], None] = lambda _plan: None,
) -> Run:
    """Serve a workload to its end.

    Args:
        policy: decides.
        workload: requests.
        ladder: the levels.
        costs: the latency model, which the host obeys but for the noise.
        noise: of the host.
        max_rows: most requests that share a step.
        seed: of the jitter.
        knows_all: tell the policy the length of each answer and the true slowdown.
        on_plan: told of each decision.
    """
    if knows_all:
        # An answer as long as the caller says that it may become needs no prediction.
        workload = replace(workload, max_new_tokens=workload.new_tokens)
    host = _Host(
        policy,
        workload,
        ladder,
        costs,
        noise,
        max_rows=max_rows,
        seed=seed,
        knows_all=knows_all,
        on_plan=on_plan,
    )
    host.serve()
    return host.run


class _Host:
    """A scheduler on a simulated engine, and the books of its run; arguments as of `simulate`."""

    def __init__(
        self,
        policy: StepPolicy,
        workload: Workload,
        ladder: Ladder,
        costs: StepCosts,
        noise: Noise,
        *,
        max_rows: int,
        seed: int,
        knows_all: bool,
        on_plan: Callable[[StepPlan], None],
    ) -> None:
        self._workload, self._noise, self._on_plan = workload, noise, on_plan
        self._clock, self._policy, self.run = VirtualClock(), TimedPolicy(policy), Run()
        self._arrivals, self._coming = [*workload.arrived_ms.tolist(), math.inf], 0
        lengths, self._latency = self._predictors(costs, len(ladder.depths), knows_all=knows_all)
        self._promises = Promises(ladder, self._latency, lengths, self._latency.alpha)
        engine = SimulatedEngine(
            costs,
            ladder,
            self._clock,
            workload.new_tokens.tolist(),
            slowdown=noise.slowdown,
            jitter=noise.jitter,
            rng=np.random.default_rng(seed),
            next_arrival=lambda: self._arrivals[self._coming],
        )
        self._scheduler = Scheduler(
            engine,
            self._policy,
            ladder,
            self._latency,
            lengths,
            clock=self._clock,
            max_rows=max_rows,
            on_end=self._ended,
            on_plan=self._planned,
        )

    def _predictors(
        self, costs: StepCosts, num_levels: int, *, knows_all: bool
    ) -> tuple[LengthPredictor, OnlineLatency]:
        if knows_all:
            known = KnownLatency(costs, num_levels, lambda: self._noise.slowdown(self._clock.now_ms))
            return LengthPredictor(least=len(self._workload) + 1), known
        # What a profile of such a host would have found as its p95.
        return LengthPredictor(), OnlineLatency(costs, num_levels, first_quantile=_NORMAL_P95 * self._noise.jitter)

    def _planned(self, plan: StepPlan) -> None:
        number = plan.tickets[0].number
        if plan.kind == "prefill" and number not in self.run.predicted_ms:
            promise = self._promises.make(plan, self._scheduler.running, self._clock.now_ms)
            self.run.predicted_ms[number] = promise.predicted_ms
        self._on_plan(plan)

    def _ended(self, ticket: Ticket, outcome: Outcome) -> None:
        self._promises.keep(ticket, self._clock.now_ms, is_whole=outcome == "served")
        self.run.tickets.append((ticket, outcome))

    def _admit(self) -> None:
        workload = self._workload
        while self._arrivals[self._coming] <= self._clock.now_ms:
            index = self._coming
            sizes = int(workload.prompt_tokens[index]), int(workload.max_new_tokens[index])
            self._scheduler.submit(*sizes, workload.contracts[index])
            self._coming += 1

    def serve(self) -> None:
        """Serve the workload to its end."""
        clock, is_busy, busy_ms = self._clock, False, 0.0
        while is_busy or self._coming < len(self._workload):
            if not is_busy:
                clock.now_ms = max(clock.now_ms, self._arrivals[self._coming])
            self._admit()
            begun_ms = clock.now_ms
            is_busy = self._scheduler.step()
            busy_ms += clock.now_ms - begun_ms
            self.run.followed.append((busy_ms, self._latency.slowdown, self._noise.slowdown(clock.now_ms)))
        self.run.spent_ns, self.run.coverage = self._policy.spent_ns, self._latency.coverage
        self.run.promises = self._promises.coverage


def summarise(run: Run, workload: Workload, ladder: Ladder) -> dict[str, Any]:
    """The figures of one run; what was shed or refused counts as not in time."""
    num_offered = len(workload)
    served = [ticket for ticket, outcome in run.tickets if outcome == "served"]
    good = [ticket for ticket in served if ticket.kept()]
    span_s = max([t.last_ms for t in served], default=math.nan) / 1e3
    busy_ms = sum(ticket.busy_ms for ticket, _ in run.tickets)
    good_ms = sum(ticket.busy_ms for ticket in good)
    late_ms = [max(0.0, ticket.last_ms - ticket.end_by_ms) for ticket in served]
    return {
        "effective_quality": sum(t.worth_sum / t.num_new for t in good) / num_offered,
        "attainment": len(good) / num_offered,
        "goodput_per_s": len(good) / span_s,
        "goodput_tokens_per_s": sum(t.num_new for t in good) / span_s,
        "mean_quality_in_time": sum(t.worth_sum / t.num_new for t in good) / max(1, len(good)),
        "mean_depth": _mean_depth(served, ladder),
        "tardiness_p99_ms": float(np.percentile(late_ms, 99)) if late_ms else 0.0,
        "switches_per_served": sum(t.num_switches for t in served) / max(1, len(served)),
        "shed": sum(outcome in {"shed", "late"} for _, outcome in run.tickets) / num_offered,
        "wasted_work": 1 - good_ms / busy_ms if busy_ms else 0.0,
        "busy_share": busy_ms / (1e3 * span_s),
        "decision_us": percentiles([ns / 1e3 for ns in run.spent_ns]),
        "coverage": {
            "overall": run.coverage.overall,
            "by_level": {ladder.names[level]: share for level, share in run.coverage.by_level.items()},
            "worst_minute": run.coverage.worst_minute,
        },
        "recovery_ms": recovery_ms(run),
        "predicted_to_observed_median_error": _prediction_error(run, served),
        "promise_coverage": run.promises.overall,
    }


def _prediction_error(run: Run, served: list[Ticket]) -> float | None:
    """Of what requests were told when their turn came, against what they met."""
    errors = [abs(run.predicted_ms[t.number] / (t.last_ms - t.arrived_ms) - 1) for t in served]
    return median(errors) if errors else None


def _mean_depth(served: list[Ticket], ladder: Ladder) -> float | None:
    """Blocks run for a token, over all tokens handed out."""
    total = sum(sum(ticket.tokens_at) for ticket in served)
    blocks = sum(n * depth for ticket in served for n, depth in zip(ticket.tokens_at, ladder.depths, strict=True))
    return blocks / total if total else None


def percentiles(values: list[float]) -> dict[str, float]:
    """The three by which decisions are judged."""
    return dict(zip(("p50", "p99", "p99.9"), np.percentile(values, (50, 99, 99.9)).tolist(), strict=True))


def recovery_ms(run: Run) -> dict[str, float] | None:
    """Engine time from the first step after a change of speed until the estimate is close; None without changes."""
    times, changed_at, truth = [], None, 1.0
    for busy_ms, estimate, true in run.followed:
        if true != truth:
            changed_at, truth = busy_ms, true
        if changed_at is not None and abs(estimate / true - 1) <= CLOSE:
            times.append(busy_ms - changed_at)
            changed_at = None
    return {"median": median(times), "max": max(times), "n": len(times)} if times else None

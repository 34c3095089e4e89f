"""A scheduler on a simulated host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexport.core.latency import LatencyBudget
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.pipeline.build import BuildOptions, build
from blockexport.routing.contract import Contract
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.lengths import LengthPredictor
from blockexport.routing.online_latency import OnlineLatency
from blockexport.routing.step import StepPlan, StepPolicy
from blockexport.routing.steps.priced import Priced
from blockexport.routing.ticket import Ticket
from blockexport.serving.admission import Admission
from blockexport.serving.scheduler import Scheduler
from blockexport.serving.simulated import SimulatedEngine, VirtualClock
from blockexport.serving.trace import RanStep
from blockexport.testing.tiny_models import tiny_model

LADDER = Ladder(("d16", "d12", "d8", "d4"), (16, 12, 8, 4), {None: (1.0, 0.85, 0.55, 0.1)})
COSTS = StepCosts((0.0, 0.0, 0.0, 0.0, 0.01, 0.0), (0.0, 0.0, 0.04, 0.01, 0.0))


class LoggedEngine(SimulatedEngine):
    """Keeps what it was asked to do, and refuses what no cache allows."""

    calls: list[tuple[Any, ...]]

    def extend(self, ticket: Ticket, level: int, first: int, num_tokens: int, /) -> None:
        assert first == ticket.filled[level]
        self.calls.append(("extend", ticket.number, level, first, num_tokens))
        super().extend(ticket, level, first, num_tokens)

    def decode(self, tickets: Sequence[Ticket], level: int, num_steps: int, /) -> tuple[int, Sequence[Ticket]]:
        assert not any(ticket.missing(level) for ticket in tickets)
        self.calls.append(("decode", tuple(ticket.number for ticket in tickets), level))
        return super().decode(tickets, level, num_steps)

    def release(self, ticket: Ticket, /) -> None:
        self.calls.append(("release", ticket.number))


@dataclass
class Host:
    """A scheduler, and all that can be seen of it."""

    scheduler: Scheduler
    engine: LoggedEngine
    clock: VirtualClock
    lengths: dict[int, int]
    ended: list[tuple[Ticket, str]] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    steps: list[RanStep] = field(default_factory=list)

    def submit(
        self, prompt: int = 10, length: int = 4, e2e_ms: float | None = None, longest: int | None = None, **terms: Any
    ) -> Admission:
        budget = None if e2e_ms is None else LatencyBudget(e2e_ms=e2e_ms)
        self.lengths[len(self.lengths)] = length
        return self.scheduler.submit(prompt, longest or length, Contract(budget, **terms))

    def run(self) -> None:
        while self.scheduler.step():
            assert len(self.scheduler.running) <= self.scheduler._max_rows


def _make_host(policy: StepPolicy | None = None, **options: Any) -> Host:
    clock, lengths = VirtualClock(), {}
    engine = LoggedEngine(
        COSTS,
        LADDER,
        clock,
        lengths,
        slowdown=options.pop("slowdown", lambda _now: 1.0),
        jitter=0.0,
        rng=np.random.default_rng(0),
        next_arrival=lambda: float("inf"),
    )
    engine.calls = []
    host = Host(None, engine, clock, lengths)  # type: ignore[arg-type]
    host.scheduler = Scheduler(
        engine,
        policy or Priced(),
        LADDER,
        OnlineLatency(COSTS, 4),
        LengthPredictor(),
        clock=clock,
        on_end=lambda ticket, outcome: host.ended.append((ticket, outcome)),
        on_plan=options.pop("on_plan", host.plans.append),
        on_ran=host.steps.append,
        **options,
    )
    return host


@pytest.fixture(scope="session")
def make_host() -> Callable[..., Host]:
    return _make_host


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of levels d4, d3 and d2 of a tiny llama."""
    kept = ((0, 1, 2, 3), (0, 2, 3), (2, 3))
    ladder = DepthLadder.from_masks([DepthMask.from_kept(blocks, 4) for blocks in kept])
    out = tmp_path_factory.mktemp("built") / "bundle"
    build(tiny_model("llama", 4), ladder, out=out, options=BuildOptions())
    return out

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.serving.simulated import SimulatedEngine, VirtualClock

LADDER = Ladder(("d4", "d2"), (4, 2), {None: (1.0, 0.5)})
COSTS = StepCosts((1.0, 0.0, 0.0, 0.0, 0.5, 0.0), (1.0, 0.0, 0.5, 0.0, 0.25))


def _engine(lengths: list[int], **options: Any) -> tuple[SimulatedEngine, VirtualClock]:
    clock = VirtualClock()
    settings = {"slowdown": lambda _now: 1.0, "jitter": 0.0, "next_arrival": lambda: float("inf")} | options
    return SimulatedEngine(COSTS, LADDER, clock, lengths, rng=np.random.default_rng(0), **settings), clock


@pytest.fixture
def ticket(make_host: Callable[..., Any]) -> Any:
    found = make_host().submit(prompt=6, length=9).ticket
    found.num_prefilled, found.num_new = 6, 1
    return found


def test_time_passes_as_the_model_says(ticket: Any) -> None:
    engine, clock = _engine([9])
    engine.extend(ticket, 1, 0, 6)
    assert clock() == pytest.approx(1 + 2 * 0.5 * 6)
    clock.now_ms = 0.0
    # Three steps with 6, 7 and 8 tokens in the cache.
    assert engine.decode([ticket], 0, 3) == (3, [])
    assert clock() == pytest.approx(3 * (1 + 4 * 0.5) + 4 * 0.25 * (6 + 7 + 8))


def test_a_block_ends_with_an_answer_or_with_an_arrival(ticket: Any) -> None:
    engine, _ = _engine([4])
    assert engine.decode([ticket], 0, 8) == (3, [ticket])
    engine, clock = _engine([9], next_arrival=lambda: 10.0)
    # A step takes 9 ms: the arrival comes within the second.
    assert engine.decode([ticket], 0, 8) == (2, [])
    assert clock() > 10.0
    engine, _ = _engine([9], next_arrival=lambda: -1.0)
    assert engine.decode([ticket], 0, 8)[0] == 1


def test_slowdown_and_noise_multiply(ticket: Any) -> None:
    engine, clock = _engine([9], slowdown=lambda _now: 1.7)
    engine.extend(ticket, 0, 0, 6)
    assert clock() == pytest.approx(1.7 * 13)
    noisy, clock = _engine([9], jitter=0.1)
    for _ in range(4000):
        noisy.extend(ticket, 0, 0, 6)
    assert clock() / 4000 == pytest.approx(13, rel=4 * 0.1 / 4000**0.5)

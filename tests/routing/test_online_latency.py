import numpy as np
import pytest

from blockexport.routing.costs import StepCosts
from blockexport.routing.online_latency import OnlineLatency

COSTS = StepCosts((2.0, 0.0, 0.0, 0.1, 0.01, 0.0), (1.0, 0.0, 0.5, 0.1, 0.001))


def test_predictions_follow_the_host() -> None:
    latency = OnlineLatency(COSTS, 2)
    assert latency.decode_line(2, 10) == COSTS.decode_line(2, 10)
    for index in range(20):
        latency.observe("decode", 0, 10.0, 17.0, float(index))
    assert latency.slowdown == pytest.approx(1.7, rel=0.02)
    assert latency.prefill_line(5)[1] == pytest.approx(1.7 * COSTS.prefill_line(5)[1], rel=0.02)


def test_bounds_cover_their_share_through_a_step_of_the_hosts_speed() -> None:
    latency, rng = OnlineLatency(COSTS, 2, alpha=0.05), np.random.default_rng(0)
    for index, draw in enumerate(rng.lognormal(0, 0.08, 12_000)):
        factor = 1.7 if index >= 6000 else 1.0
        # 20 ms a block: the run is four minutes long, the step in the middle of it.
        latency.observe("decode", index % 2, 10.0, 10.0 * factor * draw, 20.0 * index)
    coverage = latency.coverage
    assert coverage.overall == pytest.approx(0.95, abs=0.01)
    assert coverage.by_level == {0: pytest.approx(0.95, abs=0.01), 1: pytest.approx(0.95, abs=0.01)}
    assert coverage.worst_minute is not None
    assert coverage.worst_minute >= 0.9
    assert latency.bound_factor("decode", 0) > latency.slowdown


def test_a_block_that_took_no_time_by_the_clock_teaches_nothing() -> None:
    latency = OnlineLatency(COSTS, 1)
    latency.observe("prefill", 0, 1.0, 0.0, 0.0)
    assert latency.slowdown == 1.0
    assert latency.coverage.overall is None


def test_what_one_level_is_off_is_learned_for_it_alone() -> None:
    latency = OnlineLatency(COSTS, 2)
    rng = np.random.default_rng(0)
    for now_ms in range(400):
        level = now_ms % 2
        # One level takes a fifth more than the profile says, blocks of twice the length a tenth more.
        length_ms = float(rng.choice([10.0, 20.0]))
        off = 1.2 * (1.1 if length_ms > 10 else 1.0) if level else 1.0
        latency.observe("decode", level, length_ms, off * length_ms, now_ms)
    # Long blocks count for more: the time of all blocks is to be right.
    assert latency.mean_factor("decode", 1) == pytest.approx(1.2 * (10 + 1.1 * 20) / 30, rel=0.03)
    assert latency.mean_factor("decode", 0) == pytest.approx(1.0, rel=0.03)
    assert latency.mean_factor("prefill", 0) == latency.slowdown

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.routing.quantile import Coverage, QuantileTracker


@given(scores=st.lists(st.floats(-1, 1), min_size=1, max_size=300), alpha=st.sampled_from([0.05, 0.2]))
def test_the_share_of_misses_keeps_its_bound_whatever_the_scores(scores: list[float], alpha: float) -> None:
    rate, num = 0.1, len(scores)
    tracker = QuantileTracker(alpha, rate)
    misses = sum(not tracker.observe(score) for score in scores)
    # Scores and the first value within [-1, 1]: the bound of the docstring with b = 1.
    assert abs(misses / num - alpha) <= (2 + rate) / (rate * num) + 1e-12


def test_a_score_is_judged_before_it_moves_the_quantile() -> None:
    tracker = QuantileTracker(0.5, 10.0, first=0.0)
    assert not tracker.observe(1.0)
    assert tracker.value == pytest.approx(5.0)


def test_the_worst_minute_is_found_wherever_it_lies() -> None:
    coverage = Coverage(least=60)
    bad_seconds = range(100, 130)
    for second in range(300):
        for part in (0.0, 500.0):
            coverage.observe(second % 2, 1000.0 * second + part, is_within=second not in bad_seconds)
    # Sixty whole seconds hold at most the thirty bad ones.
    assert coverage.worst_minute == pytest.approx(0.5)
    assert coverage.overall == pytest.approx(0.9)
    assert coverage.by_level == {0: pytest.approx(0.9), 1: pytest.approx(0.9)}


def test_a_minute_with_too_little_in_it_is_not_judged() -> None:
    coverage = Coverage(least=10)
    assert coverage.overall is None
    for index in range(9):
        coverage.observe(0, 30_000.0 * index, is_within=False)
    assert coverage.worst_minute is None
    assert coverage.overall == 0.0


def test_the_worst_minute_agrees_with_counting_every_window() -> None:
    rng = np.random.default_rng(2)
    times, within = np.sort(rng.uniform(0, 200_000, 2000)), rng.random(2000) < 0.9
    coverage = Coverage(least=1)
    for time, is_within in zip(times, within, strict=True):
        coverage.observe(0, float(time), is_within=bool(is_within))
    seconds = times // 1000
    # A window ends with each second in which something was seen.
    ends = sorted(end for end in set(seconds) if end - seconds[0] >= 59)
    shares = [within[(seconds > end - 60) & (seconds <= end)].mean() for end in ends]
    assert coverage.worst_minute == pytest.approx(min(shares))


def test_a_run_shorter_than_a_minute_has_no_worst_minute() -> None:
    coverage = Coverage(least=1)
    for second in range(59):
        coverage.observe(0, 1000.0 * second, is_within=False)
    assert coverage.worst_minute is None
    coverage.observe(0, 59_000.0, is_within=True)
    assert coverage.worst_minute == pytest.approx(1 / 60)

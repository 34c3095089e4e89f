import math

import numpy as np
import pytest

from blockexport.routing.slowdown import SlowdownTracker


@pytest.mark.parametrize("factor", [1.7, 1 / 1.7, 5.0])
def test_a_step_is_followed_within_a_few_blocks(factor: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.08, 500)
    tracker = SlowdownTracker()
    for draw in noise[:400]:
        tracker.observe(draw)
    assert tracker.factor == pytest.approx(1.0, rel=0.1)
    for draw in noise[400:410]:
        tracker.observe(math.log(factor) + draw)
    assert tracker.factor == pytest.approx(factor, rel=0.1)
    assert tracker.factor == pytest.approx(math.exp(tracker.log_factor))


def test_two_stalls_do_not_make_a_slow_host() -> None:
    tracker = SlowdownTracker()
    for draw in np.random.default_rng(1).normal(0, 0.02, 200):
        tracker.observe(draw)
    for _ in range(2):
        tracker.observe(math.log(8))
    assert tracker.factor == pytest.approx(1.0, rel=0.05)


def test_surprises_to_both_sides_do_not_add_up() -> None:
    tracker = SlowdownTracker()
    for draw in np.random.default_rng(1).normal(0, 0.02, 200):
        tracker.observe(draw)
    for side in (1, -1, 1, -1):
        tracker.observe(side * math.log(8))
    assert tracker.factor == pytest.approx(1.0, rel=0.05)

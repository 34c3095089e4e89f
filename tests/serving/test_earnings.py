import pytest

from blockexport.serving.earnings import Earnings


def test_it_is_worth_over_time_and_follows_what_comes() -> None:
    earnings = Earnings()
    assert earnings.per_ms == 0.0
    earnings.observe(1.0, 100.0)
    assert earnings.per_ms == pytest.approx(0.01)
    for _ in range(2000):
        earnings.observe(0.5, 10.0)
    assert earnings.per_ms == pytest.approx(0.05, rel=1e-3)

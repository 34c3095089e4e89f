import math

import pytest

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError
from blockexport.routing.contract import Contract


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"ttft_ms": 300, "e2e_ms": 200}, "ttft_ms 300 exceeds e2e_ms 200"),
        ({"tpot_ms": 30, "gap_ms": 20}, "tpot_ms 30 exceeds gap_ms 20"),
        ({"gap_ms": 300, "e2e_ms": 200}, "gap_ms 300 exceeds e2e_ms 200"),
    ],
)
def test_limits_that_contradict_one_another_are_refused(limits: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Contract(LatencyBudget(**limits))


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_a_gap_is_a_positive_finite_time(value: float) -> None:
    with pytest.raises(ConfigError, match="gap_ms"):
        LatencyBudget(gap_ms=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_floor_is_a_share(value: float) -> None:
    with pytest.raises(ConfigError, match="min_quality"):
        Contract(min_quality=value)


def test_priority_and_action_have_their_ranges() -> None:
    with pytest.raises(ConfigError, match="priority is 10"):
        Contract(priority=10)
    with pytest.raises(ConfigError, match="finish, truncate, error"):
        Contract(on_miss="retry")  # type: ignore[arg-type]
    assert Contract(priority=1).weight > Contract().weight == 1.0 > Contract(priority=-1).weight

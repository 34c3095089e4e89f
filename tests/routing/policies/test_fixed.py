import pytest

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError
from blockexport.routing.estimate import LevelEstimate
from blockexport.routing.policies.fixed import Fixed

CANDIDATES = [LevelEstimate(f"d{depth}", depth, 1.0 * depth, 1.0 * depth, 1.0, 1.0) for depth in (8, 4)]


@pytest.mark.parametrize("budget", [None, LatencyBudget(e2e_ms=1e-3), LatencyBudget(e2e_ms=1e9)])
def test_the_named_level_is_picked_whatever_the_budget(budget: LatencyBudget | None) -> None:
    assert Fixed("d4").choose(CANDIDATES, budget).picked.level == "d4"


def test_an_unknown_level_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no level 'd5' to choose; .* d8, d4"):
        Fixed("d5").choose(CANDIDATES, None)

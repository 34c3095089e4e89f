from blockexport.core.latency import LatencyBudget
from blockexport.routing.estimate import LevelEstimate
from blockexport.routing.policies.deepest_fit import DeepestFit

# The bound is twice the prediction.
CANDIDATES = [LevelEstimate(f"d{depth}", depth, 1.0 * depth, 2.0 * depth, 1.0, 2.0) for depth in (8, 6, 4)]


def pick(e2e_ms: float) -> str:
    return DeepestFit().choose(CANDIDATES, LatencyBudget(e2e_ms=e2e_ms)).picked.level


def test_the_bound_decides_not_the_prediction() -> None:
    assert [pick(limit) for limit in (16.0, 15.9, 12.0, 11.9, 8.0, 7.9)] == ["d8", "d6", "d6", "d4", "d4", "d4"]


def test_reasons_tell_the_cases_apart() -> None:
    reasons = {DeepestFit().choose(CANDIDATES, LatencyBudget(e2e_ms=limit)).reason for limit in (16.0, 12.0, 1.0)}
    reasons.add(DeepestFit().choose(CANDIDATES, None).reason)
    assert len(reasons) == 4

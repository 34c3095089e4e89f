import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError, ProfileError
from blockexport.routing.estimate import LevelEstimate
from blockexport.routing.policies.adaptive import SeedAdaptive


def candidates(*depths: int, ms_per_block: float = 10.0) -> list[LevelEstimate]:
    return [LevelEstimate(f"d{depth}", depth, ms_per_block * depth, ms_per_block * depth, 1.0, 1.0) for depth in depths]


@given(num_blocks=st.integers(1, 48), baseline_ms=st.floats(0.1, 1e4), budget_ms=st.floats(0.01, 1e5))
def test_the_depth_is_the_seeds_formula(num_blocks: int, baseline_ms: float, budget_ms: float) -> None:
    every_depth = candidates(*range(num_blocks, 0, -1))
    policy = SeedAdaptive(num_blocks=num_blocks, baseline_ms=baseline_ms)
    # Example 2 of the seed, line by line.
    depth_ratio = budget_ms / baseline_ms
    num_active = int(num_blocks * depth_ratio)
    num_active = max(1, min(num_active, num_blocks))
    assert policy.choose(every_depth, LatencyBudget(e2e_ms=budget_ms)).picked.depth == num_active


@pytest.mark.parametrize(
    ("budget_ms", "depth"), [(160.0, 16), (159.0, 12), (120.0, 12), (119.0, 8), (79.0, 4), (1.0, 4)]
)
def test_the_deepest_level_not_deeper_is_taken_else_the_shallowest(budget_ms: float, depth: int) -> None:
    # The baseline is the prediction of the deepest level: 16 blocks of 10 ms.
    choice = SeedAdaptive().choose(candidates(16, 12, 8, 4), LatencyBudget(e2e_ms=budget_ms))
    assert choice.picked.depth == depth


def test_no_budget_gives_the_deepest_level() -> None:
    assert SeedAdaptive().choose(candidates(16, 4), None).picked.depth == 16


def test_a_budget_without_an_end_to_end_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="give e2e_ms"):
        SeedAdaptive().choose(candidates(16, 4), LatencyBudget(ttft_ms=5.0))


def test_extreme_ratios_do_not_overflow() -> None:
    policy = SeedAdaptive(num_blocks=16, baseline_ms=1e-300)
    assert policy.choose(candidates(16, 4), LatencyBudget(e2e_ms=1e300)).picked.depth == 16


def test_a_baseline_of_no_time_is_refused() -> None:
    with pytest.raises(ProfileError, match="0 ms"):
        SeedAdaptive().choose(candidates(16, 4, ms_per_block=0.0), LatencyBudget(e2e_ms=5.0))


@pytest.mark.parametrize("baseline_ms", [0.0, -1.0, math.nan, math.inf])
def test_a_given_baseline_is_positive_and_finite(baseline_ms: float) -> None:
    with pytest.raises(ConfigError, match="baseline_ms"):
        SeedAdaptive(baseline_ms=baseline_ms)


def test_a_model_has_blocks() -> None:
    with pytest.raises(ConfigError, match="num_blocks"):
        SeedAdaptive(num_blocks=0)

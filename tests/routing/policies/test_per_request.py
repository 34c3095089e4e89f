from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError
from blockexport.routing.estimate import LevelEstimate
from blockexport.routing.policies.per_request import SEED_UNKNOWN_RATIO, SeedPerRequest


def candidates(*depths: int) -> list[LevelEstimate]:
    return [LevelEstimate(f"d{depth}", depth, 1.0 * depth, 1.0 * depth, 1.0, 1.0) for depth in depths]


@given(
    num_blocks=st.integers(2, 48),
    complexity=st.sampled_from(["simple", "medium", "complex", "strange"]),
    budget_ms=st.floats(0.01, 1e5) | st.sampled_from([50.0, 200.0]),
)
def test_the_depth_is_the_seeds_formula(num_blocks: int, complexity: str, budget_ms: float) -> None:
    policy = SeedPerRequest(complexity, unknown_ratio=SEED_UNKNOWN_RATIO)
    picked = policy.choose(candidates(*range(num_blocks, 0, -1)), LatencyBudget(e2e_ms=budget_ms)).picked
    # Example 3 of the seed, line by line.
    complexity_map = {"simple": 0.5, "medium": 0.75, "complex": 1.0}
    base_ratio = complexity_map.get(complexity, 0.75)
    num_active = int(num_blocks * base_ratio)
    if budget_ms < 50:
        num_active = max(1, num_active - 2)
    elif budget_ms > 200:
        num_active = min(num_blocks, num_active + 2)
    assert picked.depth == num_active


@pytest.mark.parametrize(
    ("complexity", "budget_ms", "depth"),
    [
        ("simple", 100.0, 8),
        ("medium", 100.0, 12),
        ("complex", 100.0, 16),
        ("medium", 49.0, 8),  # 12 - 2 = 10, and 8 is the deepest level not deeper
        ("simple", 201.0, 8),  # 8 + 2 = 10
        ("simple", 49.0, 4),  # 8 - 2 = 6
    ],
)
def test_the_deepest_level_not_deeper_is_taken(complexity: str, budget_ms: float, depth: int) -> None:
    choice = SeedPerRequest(complexity).choose(candidates(16, 12, 8, 4), LatencyBudget(e2e_ms=budget_ms))
    assert choice.picked.depth == depth


def test_the_magic_numbers_are_parameters() -> None:
    policy = SeedPerRequest("easy", ratios={"easy": 0.25}, tight_ms=10.0, loose_ms=20.0, step_blocks=3, num_blocks=16)
    depths = [
        policy.choose(candidates(*range(16, 0, -1)), LatencyBudget(e2e_ms=limit)).picked.depth
        for limit in (9.0, 10.0, 20.0, 21.0)
    ]
    assert depths == [1, 4, 4, 7]


def test_the_depth_stays_within_the_model() -> None:
    policy = SeedPerRequest("complex", num_blocks=8)
    assert policy.choose(candidates(10, 8, 4), LatencyBudget(e2e_ms=500.0)).picked.depth == 8


def test_without_a_budget_the_complexity_decides() -> None:
    choice = SeedPerRequest("simple").choose(candidates(16, 8, 4), None)
    assert choice.picked.depth == 8
    assert "no budget" in choice.reason


def test_an_unknown_complexity_is_refused_unless_a_ratio_is_given() -> None:
    with pytest.raises(ConfigError, match="simple, medium, complex"):
        SeedPerRequest("strange")
    assert SeedPerRequest("strange", unknown_ratio=0.5).choose(candidates(16, 8), None).picked.depth == 8


def test_a_budget_without_an_end_to_end_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="give e2e_ms"):
        SeedPerRequest("simple").choose(candidates(16, 8), LatencyBudget(tpot_ms=5.0))


@pytest.mark.parametrize(
    "options",
    [
        {"ratios": {"simple": 0.0}},
        {"ratios": {"simple": 1.5}},
        {"ratios": {"simple": float("nan")}},
        {"unknown_ratio": -1.0},
        {"tight_ms": 300.0},
        {"tight_ms": float("nan")},
        {"step_blocks": -1},
        {"num_blocks": 0},
    ],
)
def test_impossible_parameters_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SeedPerRequest("simple", **options)

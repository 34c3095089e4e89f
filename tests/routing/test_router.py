import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.latency import LatencyBudget
from blockexport.errors import ConfigError, ProfileError, RequestError
from blockexport.routing.estimate import estimate
from blockexport.routing.policies.fixed import Fixed
from blockexport.routing.request import RoutingRequest
from blockexport.routing.router import plan

Make = Callable[..., Any]

REQUESTS = st.builds(RoutingRequest, st.integers(1, 500), st.integers(0, 200), st.integers(1, 4))
LIMITS = st.none() | st.floats(0.01, 3000)
BUDGETS = st.tuples(LIMITS, LIMITS, LIMITS).filter(any).map(lambda limits: LatencyBudget(*limits))
MARGINS = st.floats(-0.5, 1.0)


@given(request_=REQUESTS, budget=BUDGETS, margin=MARGINS)
def test_the_choice_is_the_deepest_level_that_keeps_every_bound(
    make_profile: Make, make_levels: Make, request_: RoutingRequest, budget: LatencyBudget, margin: float
) -> None:
    profile, levels = make_profile(log_q95=margin), make_levels()
    decision = plan(profile, levels, request_, budget)

    def keeps(depth: int) -> bool:
        # Written out from the definition, on purpose without LevelEstimate.misses.
        bounds = estimate(profile.fit, "x", depth, request_)
        pairs = (
            (bounds.bound_ms, budget.e2e_ms),
            (bounds.ttft_bound_ms, budget.ttft_ms),
            (bounds.tpot_bound_ms or 0.0, budget.tpot_ms),
        )
        return all(limit is None or bound <= limit for bound, limit in pairs)

    fitting = [level.depth for level in levels if keeps(level.depth)]
    assert decision.feasible == bool(fitting)
    assert decision.depth == max(fitting, default=4)
    # Infeasible exactly when the fastest level misses.
    assert decision.feasible == keeps(4)
    for other in decision.alternatives:
        assert other.feasible == (other.depth in fitting)


@given(request_=REQUESTS, small=BUDGETS, factor=st.floats(1, 20), margin=MARGINS)
def test_a_larger_budget_never_gives_a_shallower_level(
    make_profile: Make,
    make_levels: Make,
    *,
    request_: RoutingRequest,
    small: LatencyBudget,
    factor: float,
    margin: float,
) -> None:
    scaled = [limit and limit * factor for limit in (small.e2e_ms, small.ttft_ms, small.tpot_ms)]
    profile, levels = make_profile(log_q95=margin), make_levels()
    tight, loose = (plan(profile, levels, request_, budget) for budget in (small, LatencyBudget(*scaled)))
    assert loose.depth >= tight.depth
    assert loose.feasible >= tight.feasible


@given(request_=REQUESTS, budget=st.none() | BUDGETS)
def test_a_decision_says_what_the_model_predicts_and_survives_json(
    make_profile: Make, make_levels: Make, request_: RoutingRequest, budget: LatencyBudget | None
) -> None:
    profile, levels = make_profile(log_q95=0.3), make_levels()
    decision = plan(profile, levels, request_, budget)
    expected = estimate(profile.fit, decision.level, decision.depth, request_)
    assert (decision.predicted_ms, decision.bound_ms) == (expected.predicted_ms, expected.bound_ms)
    assert (decision.ttft_ms, decision.ttft_bound_ms) == (expected.ttft_ms, expected.ttft_bound_ms)
    assert (decision.tpot_ms, decision.tpot_bound_ms) == (expected.tpot_ms, expected.tpot_bound_ms)
    assert {decision.level, *(other.level for other in decision.alternatives)} == {"d16", "d12", "d8", "d4"}
    value = decision.to_json()
    assert json.loads(json.dumps(value)) == value
    assert set(value) >= {"level", "predicted_ms", "bound_ms", "feasible", "reason", "alternatives"}
    assert decision == plan(profile, levels, request_, budget)


def test_no_budget_gives_the_deepest_level_and_says_so(make_profile: Make, make_levels: Make) -> None:
    decision = plan(make_profile(), make_levels(), RoutingRequest(10, 5), None)
    assert (decision.level, decision.feasible) == ("d16", True)
    assert "no budget" in decision.reason


def test_an_infeasible_budget_names_the_bound_of_the_fastest_level(make_profile: Make, make_levels: Make) -> None:
    # Level d4: 2 + 4 * (0.1 + 0.01 * 100) = 6.4 ms for the prompt.
    decision = plan(make_profile(), make_levels(), RoutingRequest(100, 1), LatencyBudget(ttft_ms=5.0))
    assert (decision.level, decision.feasible) == ("d4", False)
    assert decision.bound_ms == pytest.approx(6.4)
    assert "d4 is the fastest" in decision.reason
    assert "first token 6.4 > 5 ms" in decision.reason


def test_the_order_of_the_levels_does_not_matter(make_profile: Make, make_levels: Make) -> None:
    budget = LatencyBudget(e2e_ms=60.0)
    one = plan(make_profile(), make_levels(), RoutingRequest(20, 10), budget)
    two = plan(make_profile(), make_levels()[::-1], RoutingRequest(20, 10), budget)
    assert one == two
    assert [other.depth for other in one.alternatives] == sorted((o.depth for o in one.alternatives), reverse=True)


def test_a_prompt_and_answer_beyond_the_context_are_refused(make_profile: Make, make_levels: Make) -> None:
    profile = make_profile(context_tokens=64)
    assert plan(profile, make_levels(), RoutingRequest(60, 4), None).level == "d16"
    with pytest.raises(RequestError, match="60 prompt and 5 new tokens make 65, the model's context holds 64"):
        plan(profile, make_levels(), RoutingRequest(60, 5), None)
    plan(make_profile(context_tokens=0), make_levels(), RoutingRequest(10**6, 5), None)


def test_a_request_that_the_kind_of_model_cannot_take_is_refused(make_profile: Make, make_levels: Make) -> None:
    with pytest.raises(RequestError, match="empty prompt for a decoder"):
        plan(make_profile(), make_levels(), RoutingRequest(0, 4), None)
    with pytest.raises(RequestError, match="single-pass vision"):
        plan(make_profile(kind="vision"), make_levels(), RoutingRequest(0, 4), None)
    assert plan(make_profile(kind="vision", context_tokens=0), make_levels(), RoutingRequest(0), None).level == "d16"


def test_a_single_pass_model_meets_its_budget(make_profile: Make, make_levels: Make) -> None:
    # One image: 1.5 ms and 0.25 ms per block.
    profile = make_profile(kind="vision", context_tokens=0)
    decision = plan(profile, make_levels(), RoutingRequest(0), LatencyBudget(e2e_ms=4.6))
    assert (decision.level, decision.tpot_ms) == ("d12", None)
    assert decision.predicted_ms == pytest.approx(4.5)


def test_a_level_the_profile_does_not_know_is_refused(make_profile: Make, make_levels: Make) -> None:
    with pytest.raises(ProfileError, match=r"level d8 \(depth 8\) is not in the profile"):
        plan(make_profile(depths=(16, 4)), make_levels((16, 8, 4)), RoutingRequest(4), None)


def test_no_levels_are_refused(make_profile: Make) -> None:
    with pytest.raises(ConfigError, match="no levels"):
        plan(make_profile(), [], RoutingRequest(4), None)


def test_the_quality_floor_keeps_shallow_levels_out(make_profile: Make, make_levels: Make) -> None:
    levels = make_levels(qualities=(0.95, 0.9, 0.7, 0.4))
    budget = LatencyBudget(ttft_ms=5.0)
    decision = plan(make_profile(), levels, RoutingRequest(100, 1), budget, min_quality=0.8)
    assert (decision.level, decision.feasible) == ("d12", False)
    assert plan(make_profile(), levels, RoutingRequest(100, 1), budget).level == "d4"
    roomy = plan(make_profile(), levels, RoutingRequest(100, 1), LatencyBudget(ttft_ms=500.0), min_quality=0.8)
    assert {other.level: other.feasible for other in roomy.alternatives} == {"d12": True, "d8": False, "d4": False}


def test_the_quality_floor_is_a_ceiling_where_lower_is_better(make_profile: Make, make_levels: Make) -> None:
    levels = make_levels(qualities=(1.4, 1.6, 2.0, 3.0), higher_is_better=False)
    decision = plan(make_profile(), levels, RoutingRequest(100, 1), LatencyBudget(ttft_ms=5.0), min_quality=1.7)
    assert decision.level == "d12"


def test_a_floor_that_no_level_meets_is_refused(make_profile: Make, make_levels: Make) -> None:
    levels = make_levels(qualities=(0.95, 0.9, 0.7, 0.4))
    with pytest.raises(RequestError, match=r"no level has the quality 0.99; d16 has m 0.95"):
        plan(make_profile(), levels, RoutingRequest(4), None, min_quality=0.99)
    with pytest.raises(RequestError, match="none was judged"):
        plan(make_profile(), make_levels(), RoutingRequest(4), None, min_quality=0.1)


@pytest.mark.parametrize("floor", [math.nan, math.inf])
def test_a_floor_is_finite(make_profile: Make, make_levels: Make, floor: float) -> None:
    with pytest.raises(ConfigError, match="min_quality"):
        plan(make_profile(), make_levels(qualities=(1, 1, 1, 1)), RoutingRequest(4), None, min_quality=floor)


def test_a_policy_that_picks_a_level_too_slow_is_told_so(make_profile: Make, make_levels: Make) -> None:
    budget = LatencyBudget(ttft_ms=5.0)
    decision = plan(make_profile(), make_levels(), RoutingRequest(100, 1), budget, policy=Fixed("d16"))
    assert (decision.level, decision.policy, decision.feasible) == ("d16", "fixed", False)
    assert "asked for by name; its bound misses: first token 19.6 > 5 ms" in decision.reason
    assert plan(make_profile(), make_levels(), RoutingRequest(100, 1), None, policy="fixed:d8").level == "d8"

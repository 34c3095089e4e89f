from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.latency import LatencyBudget
from blockexport.routing.estimate import LevelEstimate, estimate
from blockexport.routing.request import RoutingRequest

Make = Callable[..., Any]


@given(prompt=st.integers(1, 400), new=st.integers(0, 100), batch=st.integers(1, 4), depth=st.integers(1, 16))
def test_a_generation_is_one_prefill_and_its_steps_over_a_growing_cache(
    make_profile: Make, prompt: int, new: int, batch: int, depth: int
) -> None:
    fit = make_profile(log_q95=0.2).fit
    result = estimate(fit, "x", depth, RoutingRequest(prompt, new, batch))
    steps = [fit.decode_ms(depth, batch, prompt + i) for i in range(new - 1)]
    assert result.ttft_ms == pytest.approx(fit.prefill_ms(depth, batch, prompt))
    assert result.predicted_ms == pytest.approx(result.ttft_ms + sum(steps))
    steps_bound_ms = fit.decode_total_bound_ms(depth, batch, prompt, len(steps))
    assert result.ttft_bound_ms == fit.prefill_bound_ms(depth, batch, prompt)
    assert result.bound_ms == pytest.approx(result.ttft_bound_ms + steps_bound_ms)
    assert result.bound_ms >= result.predicted_ms
    if steps:
        assert result.tpot_ms == pytest.approx(sum(steps) / len(steps))
        assert result.tpot_bound_ms == pytest.approx(steps_bound_ms / len(steps))
    else:
        assert (result.tpot_ms, result.tpot_bound_ms) == (None, None)


def test_the_first_token_costs_no_step(make_profile: Make) -> None:
    fit = make_profile().fit
    one, two = (estimate(fit, "x", 4, RoutingRequest(10, new)) for new in (1, 2))
    assert one.predicted_ms == estimate(fit, "x", 4, RoutingRequest(10, 0)).predicted_ms
    assert two.predicted_ms - one.predicted_ms == pytest.approx(fit.decode_ms(4, 1, 10))


def test_a_single_pass_model_takes_its_pass(make_profile: Make) -> None:
    result = estimate(make_profile(kind="vision").fit, "x", 4, RoutingRequest(0, 0, batch=2))
    assert result.predicted_ms == result.ttft_ms == pytest.approx(1 + 0.5 * 2 + 4 * 0.25 * 2)
    assert result.tpot_ms is None


def test_misses_name_each_limit_that_is_exceeded() -> None:
    level = LevelEstimate("x", 4, 90.0, 100.0, 9.0, 10.0, 4.0, 5.0)
    assert level.misses(None) == ()
    assert level.misses(LatencyBudget(e2e_ms=100.0, ttft_ms=10.0, tpot_ms=5.0)) == ()
    assert level.misses(LatencyBudget(e2e_ms=99.5)) == ("end to end 100 > 99.5 ms",)
    assert level.misses(LatencyBudget(ttft_ms=9.5)) == ("first token 10 > 9.5 ms",)
    assert level.misses(LatencyBudget(tpot_ms=4.5)) == ("per token 5 > 4.5 ms",)
    assert len(level.misses(LatencyBudget(e2e_ms=1.0, ttft_ms=1.0, tpot_ms=1.0))) == 3


def test_a_limit_per_token_is_kept_when_there_is_no_such_token() -> None:
    assert LevelEstimate("x", 4, 90.0, 100.0, 9.0, 10.0).misses(LatencyBudget(tpot_ms=0.001)) == ()

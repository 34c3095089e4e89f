from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.latency_fit import Phase
from blockexport.routing.costs import StepCosts

COEFFICIENTS: dict[Phase, tuple[float, ...]] = {
    "prefill": (2.0, 0.3, 0.02, 0.1, 0.01, 0.0001),
    "decode": (1.0, 0.2, 0.5, 0.05, 0.001),
}


@given(depth=st.integers(1, 32), new=st.integers(1, 2000), cached=st.integers(0, 2000), rows=st.integers(1, 16))
def test_a_line_is_the_fit_at_every_depth(
    make_profile: Callable[..., Any], depth: int, new: int, cached: int, rows: int
) -> None:
    fit = make_profile(coefficients=COEFFICIENTS).fit
    costs = StepCosts.of(fit)
    fixed, slope = costs.prefill_line(new, cached)
    assert fixed + depth * slope == pytest.approx(fit.prefill_ms(depth, 1, new, cached))
    fixed, slope = costs.decode_line(rows, rows * cached)
    assert fixed + depth * slope == pytest.approx(fit.decode_ms(depth, rows, cached))


def test_a_budget_can_be_divided_by_what_a_block_costs_even_if_it_was_measured_as_nothing() -> None:
    costs = StepCosts((0.0,) * 6, (0.0,) * 5)
    assert costs.prefill_line(1)[1] > 0 < costs.decode_line(1, 0)[1]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.latency_table import Curve, PhaseTable
from blockexport.routing.cost_table import CostTable
from blockexport.routing.costs import StepCosts

TOKENS = (16, 64, 256)
# Of these levels the middle one stores its weights in a way that takes longer.
TABLE = PhaseTable(
    curves=tuple(
        Curve(
            depth=depth, batch=batch, tokens=TOKENS, ms=tuple(batch**0.5 * each * (1 + count / 200) for count in TOKENS)
        )
        for depth, each in ((24, 20.0), (12, 30.0), (6, 7.0))
        for batch in (1, 4)
    )
)
COSTS = StepCosts((0.0,) * 5 + (1e-5,), (0.0,) * 5, CostTable.of(TABLE), CostTable.of(TABLE))


@given(batch=st.floats(1, 9), tokens=st.floats(16, 256))
def test_no_level_lies_above_the_line(batch: float, tokens: float) -> None:
    fixed, slope = COSTS.decode_line(batch, batch * tokens)
    assert fixed >= 0 < slope
    for depth in (24, 12, 6):
        assert TABLE.at(depth, batch, tokens) <= (fixed + depth * slope) * (1 + 1e-9)


@pytest.mark.parametrize("tokens", [16, 50, 256])
def test_levels_on_a_line_are_met_exactly(tokens: int) -> None:
    table = PhaseTable(
        curves=tuple(
            Curve(depth=depth, batch=1, tokens=TOKENS, ms=tuple(2 + depth * (1 + count / 100) for count in TOKENS))
            for depth in (24, 12, 6)
        )
    )
    fixed, slope = StepCosts((0.0,) * 6, (0.0,) * 5, CostTable.of(table)).prefill_line(tokens)
    assert (fixed, slope) == pytest.approx((2, 1 + tokens / 100))


def test_a_filled_cache_adds_to_a_prompt_what_the_coefficients_say() -> None:
    empty, filled = COSTS.prefill_line(64), COSTS.prefill_line(64, 1000)
    assert filled[0] == empty[0]
    assert filled[1] - empty[1] == pytest.approx(1e-5 * 64 * 1000)


def test_one_level_is_its_own_line() -> None:
    table = PhaseTable(curves=(Curve(depth=8, batch=1, tokens=(1,), ms=(3.0,)),))
    assert CostTable.of(table).line(1, 9) == (3.0, 0.0)
    assert CostTable.of(table).line(2, 9) == (6.0, 0.0)

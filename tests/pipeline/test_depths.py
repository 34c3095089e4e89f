import math

import pytest

from blockexport.core.latency_fit import TERMS, LatencyFit, PhaseFit, Residuals
from blockexport.core.latency_table import Curve, PhaseTable
from blockexport.core.scores import BlockScores
from blockexport.errors import ConfigError
from blockexport.pipeline.depths import auto_depths, budget_depths
from blockexport.routing.estimate import estimate
from blockexport.routing.request import RoutingRequest


def scores(num_blocks: int, protected: tuple[int, ...] = ()) -> BlockScores:
    values = tuple(math.inf if i in protected else float(i) for i in range(num_blocks))
    return BlockScores("m", values, (0.0,) * num_blocks, protected)


@pytest.mark.parametrize(
    ("num_blocks", "expected"), [(12, (12, 9, 6, 3)), (16, (16, 12, 8, 4)), (2, (2, 1)), (1, (1,)), (3, (3, 2, 1))]
)
def test_auto_is_all_and_three_quarters_and_half_and_a_quarter(num_blocks: int, expected: tuple[int, ...]) -> None:
    assert auto_depths(scores(num_blocks), "top_k") == expected


def test_auto_keeps_off_what_is_forbidden() -> None:
    assert auto_depths(scores(12, (0, 1, 10, 11)), "top_k") == (12, 9, 6)
    assert auto_depths(scores(12), "top_k", 7) == (12, 9)
    assert auto_depths(scores(12, tuple(range(12))), "top_k") == (12,)
    assert auto_depths(scores(12), "threshold") is None


def phase(name: str, *coefficients: float) -> PhaseFit:
    residuals = Residuals(
        batch=1, log_p95_q50=0.0, log_p95_q95=0.1, log_p95_max=0.2, log_mean_q95=0.05, spread_q95=0.1, num_points=4
    )
    return PhaseFit(
        terms=TERMS[name],  # type: ignore[index]
        coefficients=coefficients,
        residuals=(residuals,),
        relative_error_p95=0.0,
        r2=None,
        num_points=4,
    )


FIT = LatencyFit(
    prefill=phase("prefill", 1, 0.5, 0.01, 0.2, 0.02, 1e-5), decode=phase("decode", 0.5, 0.1, 0.3, 0.1, 1e-4)
)
REQUEST = RoutingRequest(64, 16)


@pytest.mark.parametrize("depth", [1, 5, 11])
def test_a_budget_gives_the_deepest_depth_whose_bound_fits(depth: int) -> None:
    bound = estimate(FIT, "", depth, REQUEST).bound_ms
    assert budget_depths(FIT, 12, [bound * 1.000001], REQUEST) == (12, depth)
    if depth > 1:
        assert budget_depths(FIT, 12, [bound * 0.999999], REQUEST) == (12, depth - 1)


def test_several_budgets_give_a_ladder_and_roomy_ones_the_full_model() -> None:
    bounds = [estimate(FIT, "", depth, REQUEST).bound_ms * 1.0001 for depth in (9, 4)]
    assert budget_depths(FIT, 12, [*bounds, 1e9], REQUEST) == (12, 9, 4)


def test_a_budget_below_one_block_is_refused() -> None:
    with pytest.raises(ConfigError):
        budget_depths(FIT, 12, [0.001], REQUEST)


def table(*times_ms: float) -> PhaseTable:
    """Of 2, 4 and 8 blocks, whatever the length."""
    return PhaseTable(
        curves=tuple(Curve(depth=d, batch=1, tokens=(1,), ms=(ms,)) for d, ms in zip((2, 4, 8), times_ms, strict=True))
    )


def test_of_a_table_depths_between_the_measured_ones_lie_on_a_line() -> None:
    prefill = FIT.prefill.model_copy(update={"table": table(10, 20, 60)})  # type: ignore[union-attr]
    decode = FIT.decode.model_copy(update={"table": table(1, 2, 6)})  # type: ignore[union-attr]
    fit = LatencyFit(prefill=prefill, decode=decode)
    two, four, eight = (estimate(fit, "", depth, REQUEST).bound_ms for depth in (2, 4, 8))
    six = (four + eight) / 2
    assert budget_depths(fit, 12, [eight * 1.0001], REQUEST) == (12, 8)
    assert budget_depths(fit, 12, [six * 1.0001], REQUEST) == (12, 6)
    assert budget_depths(fit, 12, [six * 0.9999], REQUEST) == (12, 5)
    assert budget_depths(fit, 12, [eight * 10.0001 / 8], REQUEST) == (12, 10)
    # Of less than was measured it is only known that it takes no longer.
    assert budget_depths(fit, 12, [two * 1.0001], REQUEST) == (12, 2)
    with pytest.raises(ConfigError):
        budget_depths(fit, 12, [two * 0.9999], REQUEST)

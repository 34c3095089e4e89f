from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockexport.core.latency import DistributionSummary, LatencyPoint
from blockexport.core.latency_fit import Phase, term_values
from blockexport.core.model import ModelKind
from blockexport.errors import ProfileError
from blockexport.profiling.fit import ALLOWED_HELD_OUT_ERROR, fit_latency
from blockexport.profiling.grid import build_grid

TRUTH: dict[Phase, tuple[float, ...]] = {
    "prefill": (0.4, 0.1, 0.004, 0.05, 0.006, 2e-5),
    "decode": (0.5, 0.1, 0.12, 0.03, 4e-4),
    "forward": (0.8, 0.2, 0.3, 0.4),
}
DEPTHS = (16, 12, 8, 4)


def synthetic(
    kind: ModelKind,
    noise: float | Callable[[int], NDArray[np.float64]],
    seed: int,
    *,
    quick: bool = False,
    truth: dict[Phase, tuple[float, ...]] = TRUTH,
    depths: tuple[int, ...] = DEPTHS,
    repeats: int = 40,
) -> list[LatencyPoint]:
    rng = np.random.default_rng(seed)
    points = []
    for cell in build_grid(kind, 1024, quick=quick):
        for depth in depths:
            values = term_values(cell.phase, depth, cell.batch, cell.new_tokens, cell.kv_tokens)
            exact = float(np.dot(truth[cell.phase], values))
            factors = noise(repeats) if callable(noise) else rng.lognormal(0, noise, size=repeats)
            points.append(
                LatencyPoint(
                    level=f"d{depth}",
                    depth=depth,
                    phase=cell.phase,
                    batch=cell.batch,
                    new_tokens=cell.new_tokens,
                    kv_tokens=cell.kv_tokens,
                    summary=DistributionSummary.of((exact * factors).tolist()),
                )
            )
    return points


@pytest.mark.parametrize("quick", [True, False])
def test_exact_points_give_back_their_coefficients(quick: bool) -> None:
    fit = fit_latency(synthetic("decoder", 0, 0, quick=quick))
    for phase in ("prefill", "decode"):
        np.testing.assert_allclose(fit.phase(phase).coefficients, TRUTH[phase], rtol=1e-6)
        assert fit.phase(phase).r2 == pytest.approx(1.0)
        assert [fit.phase(phase).margin(batch) for batch in (1, 2, 4)] == pytest.approx([1.0] * 3)
    single = fit_latency(synthetic("vision", 0, 0)).phase("forward")
    np.testing.assert_allclose(single.coefficients, TRUTH["forward"], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_noisy_points_give_nearly_the_coefficients_and_the_noise(seed: int) -> None:
    noise = 0.1
    fit = fit_latency(synthetic("decoder", noise, seed))
    np.testing.assert_allclose(fit.phase("decode").coefficients, TRUTH["decode"], rtol=0.35, atol=0.05)
    # What matters is the prediction: a median of 40 samples errs by about 1.25 * noise / sqrt(40) = 2 %.
    for depth in DEPTHS:
        exact = float(np.dot(TRUTH["decode"], term_values("decode", depth, 2, 1, 300)))
        assert fit.decode_ms(depth, 2, 300) == pytest.approx(exact, rel=0.05)
        exact = float(np.dot(TRUTH["prefill"], term_values("prefill", depth, 2, 100, 0)))
        assert fit.prefill_ms(depth, 2, 100) == pytest.approx(exact, rel=0.05)
    # The p95 of lognormal noise is e^(1.645 * noise) times its median; over many points the 0.95 quantile is above it.
    assert [entry.batch for entry in fit.phase("decode").residuals] == [1, 2, 4]
    for entry in fit.phase("decode").residuals:
        assert 1.645 * noise < entry.log_p95_q95 <= entry.log_p95_max < 3.5 * noise
        assert 1.2 * noise < entry.log_p95_q50 < 2.2 * noise
    assert fit.phase("decode").r2 == pytest.approx(1.0, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.02, 0.3, 1.0]),
    kind=st.sampled_from(["decoder", "encoder"]),
    repeats=st.integers(1, 12),
)
def test_coefficients_are_never_negative_and_the_bound_covers_p95(
    seed: int, noise: float, kind: ModelKind, repeats: int
) -> None:
    points = synthetic(kind, noise, seed, quick=True, repeats=repeats)
    fit = fit_latency(points)
    for phase in {point.phase for point in points}:
        chosen = [point for point in points if point.phase == phase]
        model = fit.phase(phase)
        assert min(model.coefficients) >= 0
        for batch in (1, 2, 4):
            covered = []
            for p in chosen:
                predicted = model.at(phase, p.depth, p.batch, p.new_tokens, p.kv_tokens)
                assert predicted > 0
                if p.batch == batch:
                    covered.append(p.summary.p95_ms <= predicted * model.margin(batch) * (1 + 1e-9))
            assert sum(covered) >= 0.95 * len(covered)


@pytest.mark.parametrize("noise", ["lognormal", "stalls"])
def test_the_bound_of_a_generation_covers_it_without_adding_up_the_tails(noise: str) -> None:
    rng = np.random.default_rng(0)

    def factors(size: tuple[int, ...] | int) -> NDArray[np.float64]:
        if noise == "lognormal":
            return rng.lognormal(0, 0.3, size=size)
        # One step in twelve is descheduled for nine times its length: what a busy host with few cores looks like.
        return np.where(rng.random(size) < 1 / 12, 10.0, 1.0)

    fit = fit_latency(synthetic("decoder", factors, 0))
    steps = 31
    exact = [float(np.dot(TRUTH["decode"], term_values("decode", 8, 1, 1, 64 + i))) for i in range(steps)]
    totals = (np.array(exact) * factors((4000, steps))).sum(axis=1)
    bound = fit.decode_total_bound_ms(8, 1, 64, steps)
    assert (totals <= bound).mean() >= 0.95
    assert bound < 0.85 * sum(fit.decode_bound_ms(8, 1, 64 + i) for i in range(steps))


def test_one_level_still_predicts_itself() -> None:
    fit = fit_latency(synthetic("decoder", 0, 0, depths=(8,)))
    exact = float(np.dot(TRUTH["decode"], term_values("decode", 8, 1, 1, 200)))
    assert fit.decode_ms(8, 1, 200) == pytest.approx(exact)


def test_a_depth_independent_part_that_is_not_there_is_found_to_be_zero() -> None:
    truth: dict[Phase, tuple[float, ...]] = {**TRUTH, "decode": (0.0, 0.0, 0.2, 0.1, 1e-3)}
    fit = fit_latency(synthetic("decoder", 0, 0, truth=truth))
    assert fit.offset_ms("decode", batch=4) == pytest.approx(0, abs=1e-9)


def test_only_measured_phases_are_fitted() -> None:
    decode_only = [point for point in synthetic("decoder", 0, 0) if point.phase == "decode"]
    fit = fit_latency(decode_only)
    assert (fit.prefill, fit.forward) == (None, None)


def test_equal_medians_explain_nothing() -> None:
    points = [p for p in synthetic("vision", 0, 0) if (p.batch, p.depth) == (1, 4)]
    assert fit_latency(points).phase("forward").r2 is None


def test_no_points_are_refused() -> None:
    with pytest.raises(ProfileError, match="no measured points"):
        fit_latency([])


def test_a_clock_that_is_too_coarse_is_named() -> None:
    with pytest.raises(ProfileError, match="too coarse"):
        fit_latency([forward_point(0.0, 0.0, 1.0)])


def forward_point(*samples_ms: float) -> LatencyPoint:
    summary = DistributionSummary.of(list(samples_ms))
    return LatencyPoint(level="d1", depth=1, phase="forward", batch=1, new_tokens=0, kv_tokens=0, summary=summary)


def test_errors_are_weighted_relatively() -> None:
    # Two medians of one shape, 1 and 2 ms: (c/1 - 1)^2 + (c/2 - 1)^2 is least at c = 1.5 / 1.25.
    assert fit_latency([forward_point(1.0), forward_point(2.0)]).forward_ms(1, 1) == pytest.approx(1.2)


def test_residuals_describe_tail_mean_and_spread_around_the_prediction() -> None:
    fit = fit_latency([forward_point(1.0, 1.0, 1.0, 1.0, 11.0)]).phase("forward")
    (entry,) = fit.residuals
    assert (entry.batch, entry.num_points) == (1, 1)
    # The p95 of five values lies 0.8 of the way from the fourth to the fifth.
    assert np.exp([entry.log_p95_q95, entry.log_mean_q95]) == pytest.approx([9.0, 3.0])
    assert entry.spread_q95 == pytest.approx(4.0)


def test_coefficients_are_held_to_points_that_they_have_not_seen() -> None:
    fit = fit_latency(synthetic("decoder", 0.02, 0))
    for phase in ("prefill", "decode"):
        error = fit.phase(phase).held_out_error_p95
        assert error is not None
        # A median of 40 samples errs by 1.25 * 0.02 / sqrt(40), and the p95 of that is twice as much.
        assert 0 < error < 0.02
        assert fit.phase(phase).table is None
    assert not fit.uses_table


def test_times_that_are_no_sum_of_the_terms_become_a_table() -> None:
    """A level whose weights are stored in another way: half the blocks, twice the time."""
    points = [_times(point, 4.0) if point.depth == 8 else point for point in synthetic("decoder", 0, 0)]
    fit = fit_latency(points)
    assert fit.uses_table
    assert fit.decode is not None
    assert fit.decode.held_out_error_p95 is not None
    assert fit.decode.held_out_error_p95 > ALLOWED_HELD_OUT_ERROR
    for p in points:
        predicted = fit.phase(p.phase).at(p.phase, p.depth, p.batch, p.new_tokens, p.kv_tokens)
        assert predicted == pytest.approx(p.summary.p50_ms)
    assert fit.decode.margin(1) == pytest.approx(1.0)


def test_levels_that_are_not_alike_get_a_table_even_if_a_line_goes_through_them() -> None:
    fit = fit_latency(synthetic("decoder", 0, 0), levels_alike=False)
    assert [fit.phase(phase).table is None for phase in ("prefill", "decode")] == [False, False]
    assert "table" in fit.bases["decode"]


@given(tokens=st.integers(1, 3000), batch=st.integers(1, 8), more=st.integers(0, 500))
def test_a_table_never_falls_with_length_or_batch(tokens: int, batch: int, more: int) -> None:
    for phase in ("prefill", "decode"):
        table = NOISY_TABLE.phase(phase).table
        assert table is not None
        least = table.at(8, batch, tokens)
        assert 0 < least <= table.at(8, batch, tokens + more)
        assert least <= table.at(8, batch + 1, tokens) * (1 + 1e-12)


def test_a_generation_by_the_table_is_about_the_sum_of_its_steps() -> None:
    fit = fit_latency(synthetic("decoder", 0, 0), levels_alike=False)
    exact = [float(np.dot(TRUTH["decode"], term_values("decode", 8, 1, 1, 64 + i))) for i in range(300)]
    assert fit.decode_total_ms(8, 1, 64, 300) == pytest.approx(sum(exact))
    assert fit.prefill_ms(8, 1, 64, 100) > fit.prefill_ms(8, 1, 64)
    with pytest.raises(ProfileError, match="no level of 7 blocks"):
        fit.decode_ms(7, 1, 64)


def test_too_few_points_to_leave_any_out_are_fitted_as_they_are() -> None:
    fit = fit_latency([forward_point(1.0)])
    assert (fit.phase("forward").held_out_error_p95, fit.phase("forward").table) == (None, None)


def _times(point: LatencyPoint, factor: float) -> LatencyPoint:
    summary = DistributionSummary.of([point.summary.p50_ms * factor])
    return point.model_copy(update={"summary": summary})


NOISY_TABLE = fit_latency(synthetic("decoder", 0.4, 3, repeats=3), levels_alike=False)

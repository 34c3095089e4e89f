import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency import DistributionSummary, LatencyBudget, LatencyPoint, LatencyProfile
from blockexport.core.latency_fit import TERMS, LatencyFit, Phase, PhaseFit, Residuals
from blockexport.errors import ConfigError, ProfileError

HOST = HostFingerprint(
    cpu="x", cpu_features=("avx2",), num_cpus=2, system="Linux", python="3.11", packages={"numpy": "2"}
)


def residuals(batch: int = 1, log_p95: float = 0.1, log_mean: float = 0.02, spread: float = 0.05) -> Residuals:
    return Residuals(
        batch=batch,
        log_p95_q50=0.0,
        log_p95_q95=log_p95,
        log_p95_max=log_p95,
        log_mean_q95=log_mean,
        spread_q95=spread,
        num_points=8,
    )


def phase_fit(phase: Phase, coefficients: tuple[float, ...], log_p95: float = 0.1) -> PhaseFit:
    return PhaseFit(
        terms=TERMS[phase],
        coefficients=coefficients,
        residuals=(residuals(log_p95=log_p95),),
        relative_error_p95=0.01,
        r2=0.99,
        num_points=8,
    )


def decoder_fit(q95: float = 0.1) -> LatencyFit:
    return LatencyFit(
        prefill=phase_fit("prefill", (1.0, 0.5, 0.01, 0.2, 0.03, 0.0001), q95),
        decode=phase_fit("decode", (0.7, 0.2, 0.3, 0.05, 0.001), q95),
    )


def point(level: str, phase: Phase, batch: int, new: int, kv: int, *samples: float) -> LatencyPoint:
    summary = DistributionSummary.of(list(samples) or [1.0])
    return LatencyPoint(
        level=level, depth=int(level[1:]), phase=phase, batch=batch, new_tokens=new, kv_tokens=kv, summary=summary
    )


def decoder_profile() -> LatencyProfile:
    points = []
    for level, depth in (("d6", 6), ("d12", 12)):
        points += [
            point(level, "prefill", 1, 16, 0, 1.0 * depth),
            point(level, "prefill", 1, 64, 0, 3.0 * depth, 5.0 * depth),
            point(level, "prefill", 2, 64, 0, 7.0 * depth),
            point(level, "decode", 1, 1, 16, 0.5 * depth),
            point(level, "decode", 1, 1, 64, 0.6 * depth, 0.7 * depth, 0.8 * depth),
        ]
    return LatencyProfile(
        host=HOST,
        bundle_digest="b",
        threads=1,
        kind="decoder",
        context_tokens=128,
        quick=True,
        points=tuple(points),
        fit=decoder_fit(),
    )


@pytest.mark.parametrize("field", ["e2e_ms", "ttft_ms", "tpot_ms"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_budget_is_positive_and_finite(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"budget {field} is"):
        LatencyBudget(**{field: value})


def test_a_budget_has_a_bound() -> None:
    with pytest.raises(ConfigError, match="at least one of"):
        LatencyBudget()


def test_a_summary_needs_a_measurement() -> None:
    with pytest.raises(ProfileError, match="no measurements"):
        DistributionSummary.of([])


def test_a_summary_describes_its_samples() -> None:
    summary = DistributionSummary.of([float(i) for i in range(1, 102)])
    assert (summary.n, summary.min_ms, summary.p50_ms, summary.p95_ms, summary.mean_ms) == (101, 1, 51, 96, 51)
    assert summary.std_ms == pytest.approx(math.sqrt((101**2 - 1) / 12))


def test_a_prediction_is_the_documented_formula() -> None:
    fit = decoder_fit()
    b, d, new, cached = 2, 5, 30, 10
    expected = 1.0 + 0.5 * b + 0.01 * b * new + d * (0.2 + 0.03 * b * new + 0.0001 * b * new * (cached + new / 2))
    assert fit.prefill_ms(d, b, new, cached) == pytest.approx(expected)
    assert fit.decode_ms(d, b, 40) == pytest.approx(0.7 + 0.2 * b + d * (0.3 + 0.05 * b + 0.001 * b * 40))
    single = LatencyFit(forward=phase_fit("forward", (1.0, 2.0, 3.0, 4.0)))
    assert single.forward_ms(d, b) == pytest.approx(1 + 2 * b + d * (3 + 4 * b))


def test_the_offset_is_what_no_pruning_removes() -> None:
    fit = decoder_fit()
    assert fit.offset_ms("decode", batch=3) == pytest.approx(0.7 + 0.2 * 3)
    assert fit.offset_ms("prefill", batch=3, new_tokens=10) == pytest.approx(1.0 + 0.5 * 3 + 0.01 * 30)
    assert fit.decode_ms(4, 1, 8) - fit.decode_ms(2, 1, 8) == pytest.approx(
        fit.decode_ms(2, 1, 8) - fit.offset_ms("decode")
    )


@given(steps=st.integers(0, 60), kv=st.integers(1, 500), depth=st.integers(1, 30), batch=st.integers(1, 8))
def test_the_closed_form_of_many_steps_is_their_sum(steps: int, kv: int, depth: int, batch: int) -> None:
    fit = decoder_fit()
    one_by_one = sum(fit.decode_ms(depth, batch, kv + i) for i in range(steps))
    assert fit.decode_total_ms(depth, batch, kv, steps) == pytest.approx(one_by_one)


@given(
    steps=st.integers(0, 300),
    log_p95=st.floats(-0.5, 3),
    log_mean=st.floats(-0.5, 1),
    spread=st.floats(0, 3),
)
def test_the_bound_of_many_steps_grows_with_them_and_covers_the_prediction(
    steps: int, log_p95: float, log_mean: float, spread: float
) -> None:
    entry = residuals(log_p95=log_p95, log_mean=log_mean, spread=spread)
    decode = decoder_fit().phase("decode").model_copy(update={"residuals": (entry,)})
    fit = LatencyFit(decode=decode)
    total = fit.decode_total_bound_ms(4, 1, 16, steps)
    assert total >= fit.decode_total_ms(4, 1, 16, steps)
    assert total <= fit.decode_total_bound_ms(4, 1, 16, steps + 1)
    if steps == 1:
        assert total == fit.decode_bound_ms(4, 1, 16)


def test_fluctuations_of_many_steps_average_out_and_a_shift_does_not() -> None:
    entry = residuals(log_p95=math.log(3.0), log_mean=math.log(1.2), spread=0.5)
    assert entry.margin() == pytest.approx(3.0)
    assert entry.margin(100) == pytest.approx(1.2 + 1.8 / 10)
    # Rare stalls: the p95 of one call does not see them, the standard deviation does.
    stalls = residuals(log_p95=math.log(1.05), log_mean=math.log(1.2), spread=2.0)
    assert stalls.margin(100) == pytest.approx(1.2 + 1.645 * 2.0 / 10)


def test_a_margin_belongs_to_its_batch_size_and_is_the_largest_for_others() -> None:
    fit = phase_fit("decode", (1.0, 1.0, 1.0, 1.0, 1.0))
    fit = fit.model_copy(update={"residuals": (residuals(1, 0.1), residuals(2, 0.9), residuals(4, 0.3))})
    assert [fit.margin(batch) for batch in (1, 2, 4)] == pytest.approx([math.exp(x) for x in (0.1, 0.9, 0.3)])
    assert fit.margin(3) == fit.margin(2)


@given(q95=st.floats(-2, 2), depth=st.integers(1, 40))
def test_a_bound_is_the_residual_quantile_and_never_below_the_prediction(q95: float, depth: int) -> None:
    fit = decoder_fit(q95)
    factor = max(1.0, math.exp(q95))
    assert fit.prefill_bound_ms(depth, 1, 32) == pytest.approx(factor * fit.prefill_ms(depth, 1, 32))
    assert fit.decode_bound_ms(depth, 1, 32) >= fit.decode_ms(depth, 1, 32)
    single = LatencyFit(forward=phase_fit("forward", (1.0, 2.0, 3.0, 4.0), q95))
    assert single.forward_bound_ms(depth, 1) == pytest.approx(factor * single.forward_ms(depth, 1))


@given(coefficients=st.tuples(*[st.floats(0, 1e6)] * 6), depth=st.integers(1, 100), tokens=st.integers(1, 4096))
def test_predictions_never_fall_with_depth(coefficients: tuple[float, ...], depth: int, tokens: int) -> None:
    fit = LatencyFit(prefill=phase_fit("prefill", coefficients))
    assert fit.prefill_ms(depth + 1, 1, tokens) >= fit.prefill_ms(depth, 1, tokens)


def test_a_phase_that_was_not_measured_has_no_prediction() -> None:
    with pytest.raises(ProfileError, match="no forward measurements, only prefill, decode"):
        decoder_fit().forward_ms(3, 1)


def test_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(ValidationError):
        phase_fit("forward", (1.0, -0.1, 0.0, 0.0))


def test_a_fit_of_other_terms_is_refused() -> None:
    with pytest.raises(ProfileError, match="the decode fit has 4 coefficients"):
        LatencyFit(decode=phase_fit("forward", (1.0, 1.0, 1.0, 1.0)))
    with pytest.raises(ProfileError, match="the decode fit has 5 coefficients"):
        LatencyFit(decode=phase_fit("decode", (1.0,) * 5).model_copy(update={"residuals": ()}))


@pytest.mark.parametrize("seed", range(5))
def test_a_profile_survives_json_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    profile = decoder_profile()
    samples = [float(x) for x in rng.lognormal(size=7)]
    profile = profile.model_copy(update={"points": (*profile.points, point("d6", "decode", 2, 1, 3, *samples))})
    assert LatencyProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": []}, "without measurements"),
        ({"schema_version": 2}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"threads": 0}, "threads"),
        ({"kind": "encoder"}, "no forward measurements"),
        ({"fit": {"prefill": None}}, "no prefill measurements"),
    ],
)
def test_a_bad_profile_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        LatencyProfile.from_json({**decoder_profile().to_json(), **change})


@pytest.mark.parametrize("value", [None, [], "profile", {}])
def test_what_is_no_profile_is_refused(value: object) -> None:
    with pytest.raises(ProfileError, match="not a latency profile"):
        LatencyProfile.from_json(value)


def test_a_profile_with_a_nan_is_refused() -> None:
    value = decoder_profile().to_json()
    value["points"][0]["summary"]["p50_ms"] = math.nan
    with pytest.raises(ProfileError, match="p50_ms"):
        LatencyProfile.from_json(value)


def test_the_summary_has_one_row_per_level_deepest_first() -> None:
    deepest, shallow = decoder_profile().level_summary()
    assert deepest == {
        "name": "d12",
        "depth": 12,
        "prefill_ms": 48.0,
        "decode_ms": pytest.approx(8.4),
        "p50": pytest.approx(8.4),
        "p95": pytest.approx(12 * 0.79),
        "n": 3,
        "prompt_tokens": 64,
        "kv_tokens": 64,
    }
    assert (shallow["name"], shallow["prefill_ms"]) == ("d6", 24.0)


def test_the_summary_of_a_single_pass_model_has_no_decode() -> None:
    profile = LatencyProfile(
        host=HOST,
        bundle_digest="b",
        threads=2,
        kind="vision",
        quick=False,
        points=(point("d3", "forward", 1, 0, 0, 4.0), point("d3", "forward", 4, 0, 0, 9.0)),
        fit=LatencyFit(forward=phase_fit("forward", (1.0, 1.0, 1.0, 1.0))),
    )
    (row,) = profile.level_summary()
    assert (row["prefill_ms"], row["decode_ms"], row["p50"], row["n"]) == (4.0, None, 4.0, 1)

"""Measured points to the closed-form latency model."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blockexport.core.latency import DistributionSummary, LatencyPoint
from blockexport.core.latency_fit import TERMS, LatencyFit, Phase, PhaseFit, Residuals, term_values
from blockexport.errors import ProfileError
from blockexport.profiling.nnls import solve_nnls


def fit_latency(points: Sequence[LatencyPoint]) -> LatencyFit:
    """Fit each phase that was measured to its medians.

    Errors are weighted relatively (a decode step off by 10 % counts as much as a long prefill off by 10 %), and
    coefficients are non-negative, so that predictions never fall with depth, batch or length.

    Raises:
        ProfileError: there are no points, or a median is not positive.
    """
    if not points:
        msg = "no measured points to fit; profile at least one level"
        raise ProfileError(msg)
    by_phase = {phase: [point for point in points if point.phase == phase] for phase in TERMS}
    return LatencyFit(**{phase: _fit_phase(phase, chosen) for phase, chosen in by_phase.items() if chosen})


def _fit_phase(phase: Phase, points: Sequence[LatencyPoint]) -> PhaseFit:
    medians = np.array([point.summary.p50_ms for point in points])
    if medians.min() <= 0:
        msg = f"a {phase} call took {medians.min():g} ms by the clock; it is too coarse, measure with a finer one"
        raise ProfileError(msg)
    matrix = np.array([term_values(phase, p.depth, p.batch, p.new_tokens, p.kv_tokens) for p in points])
    coefficients = solve_nnls(matrix / medians[:, None], np.ones(len(points)))
    predicted = matrix @ coefficients
    batches = np.array([point.batch for point in points])
    return PhaseFit(
        terms=TERMS[phase],
        coefficients=tuple(coefficients.tolist()),
        residuals=tuple(
            _residuals(batch, [point.summary for point in points if point.batch == batch], predicted[batches == batch])
            for batch in sorted(set(batches.tolist()))
        ),
        relative_error_p95=_quantile(np.abs(predicted / medians - 1), 0.95),
        r2=_explained(np.log(medians), np.log(predicted)),
        num_points=len(points),
    )


def _residuals(batch: int, summaries: Sequence[DistributionSummary], predicted: NDArray[np.float64]) -> Residuals:
    tails = np.log(np.array([summary.p95_ms for summary in summaries]) / predicted)
    means = np.log(np.array([summary.mean_ms for summary in summaries]) / predicted)
    spreads = np.array([summary.std_ms for summary in summaries]) / predicted
    return Residuals(
        batch=batch,
        log_p95_q50=_quantile(tails, 0.5),
        log_p95_q95=_quantile(tails, 0.95),
        log_p95_max=float(tails.max()),
        log_mean_q95=_quantile(means, 0.95),
        spread_q95=_quantile(spreads, 0.95),
        num_points=len(summaries),
    )


def _quantile(values: NDArray[np.float64], share: float) -> float:
    # "higher" takes one of the values, so that a bound really holds for that share of them, however few there are.
    return float(np.quantile(values, share, method="higher"))


def _explained(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    total = float(((measured - measured.mean()) ** 2).sum())
    if total == 0:
        return None
    return 1 - float(((measured - predicted) ** 2).sum()) / total

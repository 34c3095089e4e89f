"""Measured points to the latency model: coefficients where they hold on points they have not seen, else a table."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blockexport.core.latency import DistributionSummary, LatencyPoint
from blockexport.core.latency_fit import TERMS, LatencyFit, Phase, PhaseFit, Residuals, term_values
from blockexport.core.latency_table import Curve, PhaseTable
from blockexport.errors import ProfileError
from blockexport.profiling.nnls import solve_nnls

ALLOWED_HELD_OUT_ERROR = 0.1
"""Largest 0.95 quantile of the relative error on held-out points with which coefficients are used."""

# Points are left out a fifth at a time: enough of them stay for every coefficient, and each is predicted once.
_NUM_FOLDS = 5


def fit_latency(points: Sequence[LatencyPoint], *, levels_alike: bool = True) -> LatencyFit:
    """Fit each phase that was measured to its medians.

    Errors are weighted relatively (a decode step off by 10 % counts as much as a long prefill off by 10 %), and
    coefficients are non-negative, so that predictions never fall with depth, batch or length. They are used if they
    are within `ALLOWED_HELD_OUT_ERROR` of points that were left out; otherwise a table of the medians is.

    Args:
        points: of all phases.
        levels_alike: whether levels differ in depth only. Levels that store their weights in different ways are no
            line over depth, and get a table.

    Raises:
        ProfileError: there are no points, or a median is not positive.
    """
    if not points:
        msg = "no measured points to fit; profile at least one level"
        raise ProfileError(msg)
    by_phase = {phase: [point for point in points if point.phase == phase] for phase in TERMS}
    fits = {phase: _fit_phase(phase, chosen, levels_alike) for phase, chosen in by_phase.items() if chosen}
    return LatencyFit(**fits)


def _fit_phase(phase: Phase, points: Sequence[LatencyPoint], levels_alike: bool) -> PhaseFit:
    medians = np.array([point.summary.p50_ms for point in points])
    if medians.min() <= 0:
        msg = f"a {phase} call took {medians.min():g} ms by the clock; it is too coarse, measure with a finer one"
        raise ProfileError(msg)
    matrix = np.array([term_values(phase, p.depth, p.batch, p.new_tokens, p.kv_tokens) for p in points])
    coefficients = solve_nnls(matrix / medians[:, None], np.ones(len(points)))
    held_out = _held_out_error(matrix, medians)
    is_closed = levels_alike and (held_out is None or held_out <= ALLOWED_HELD_OUT_ERROR)
    table = None if is_closed else _table(phase, points)
    predicted = matrix @ coefficients if table is None else _looked_up(table, phase, points)
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
        held_out_error_p95=held_out,
        table=table,
    )


def _held_out_error(matrix: NDArray[np.float64], medians: NDArray[np.float64]) -> float | None:
    """0.95 quantile of the relative error on points that were left out, a fold at a time; None if these are too few.

    Args:
        matrix: (points, terms).
        medians: (points,).
    """
    num_points, num_terms = matrix.shape
    if num_points - -(-num_points // _NUM_FOLDS) < num_terms:
        return None
    # Shuffled, or one fold would be all of a level: points come level by level within each shape.
    folds = np.random.default_rng(0).permutation(num_points) % _NUM_FOLDS
    errors = np.zeros(num_points)
    for fold in range(_NUM_FOLDS):
        left_out = folds == fold
        kept = ~left_out
        coefficients = solve_nnls(matrix[kept] / medians[kept, None], np.ones(int(kept.sum())))
        errors[left_out] = np.abs(matrix[left_out] @ coefficients / medians[left_out] - 1)
    return _quantile(errors, 0.95)


def _table(phase: Phase, points: Sequence[LatencyPoint]) -> PhaseTable:
    measured: dict[tuple[int, int], dict[int, list[float]]] = {}
    for point in points:
        by_tokens = measured.setdefault((point.depth, point.batch), {})
        by_tokens.setdefault(_tokens(phase, point), []).append(point.summary.p50_ms)
    return PhaseTable(curves=tuple(_curve(*key, measured[key]) for key in sorted(measured)))


def _curve(depth: int, batch: int, by_tokens: dict[int, list[float]]) -> Curve:
    tokens = sorted(by_tokens)
    medians = [float(np.median(by_tokens[count])) for count in tokens]
    # Noise may let more tokens seem cheaper.
    rising = np.maximum.accumulate(medians).tolist()
    return Curve(depth=depth, batch=batch, tokens=tuple(tokens), ms=tuple(rising))


def _tokens(phase: Phase, point: LatencyPoint) -> int:
    return point.new_tokens if phase == "prefill" else point.kv_tokens


def _looked_up(table: PhaseTable, phase: Phase, points: Sequence[LatencyPoint]) -> NDArray[np.float64]:
    return np.array([table.at(point.depth, point.batch, _tokens(phase, point)) for point in points])


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

"""Depths that nobody named: the usual ones, and those that a latency budget allows."""

from collections.abc import Callable, Sequence
from itertools import accumulate

from blockexport.core.latency_fit import LatencyFit
from blockexport.core.latency_table import interpolate
from blockexport.core.scores import BlockScores
from blockexport.routing.estimate import estimate
from blockexport.routing.request import RoutingRequest
from blockexport.selection import depth_for_budget, resolve_depths

AUTO_FRACTIONS = (1.0, 0.75, 0.5, 0.25)


def auto_depths(scores: BlockScores, strategy: str, min_depth: int = 1) -> tuple[int, ...] | None:
    """The full model, three quarters, a half and a quarter, without what protected blocks and `min_depth` forbid.

    None for `threshold`, which finds its own depths.
    """
    if strategy == "threshold":
        return None
    least = max(min_depth, len(scores.protected))
    counts, _ = resolve_depths(AUTO_FRACTIONS, scores.num_blocks)
    return tuple(count for count in counts if count >= least or count == scores.num_blocks)


def budget_depths(
    fit: LatencyFit, num_blocks: int, budgets_ms: Sequence[float], request: RoutingRequest
) -> tuple[int, ...]:
    """The full model, and for each budget the deepest depth whose bound for a request fits it.

    Args:
        fit: the latency model of a bundle of this model.
        num_blocks: blocks of the model.
        budgets_ms: end to end.
        request: the request that has to fit.

    Raises:
        ConfigError: not even one block fits a budget.
        ProfileError: the fit is of another kind of model.
    """
    if fit.uses_table:
        latency_ms = _between_levels(fit, request)
    else:

        def latency_ms(depth: int) -> float:
            return estimate(fit, "", depth, request).bound_ms

    chosen = {depth_for_budget(latency_ms, budget, num_blocks) for budget in budgets_ms}
    return tuple(sorted({num_blocks, *chosen}, reverse=True))


def _between_levels(fit: LatencyFit, request: RoutingRequest) -> Callable[[int], float]:
    """Bounds of a table: between measured levels a line, above them in proportion, below as the shallowest takes."""
    depths = sorted(set.intersection(*fit.measured_depths))
    bounds = list(accumulate((estimate(fit, "", depth, request).bound_ms for depth in depths), max))
    return lambda depth: interpolate(depths, bounds, min(depth, depths[-1])) * max(1.0, depth / depths[-1])

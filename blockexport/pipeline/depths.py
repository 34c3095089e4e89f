"""Depths that nobody named: the usual ones, and those that a latency budget allows."""

from collections.abc import Sequence

from blockexport.core.latency_fit import LatencyFit
from blockexport.core.scores import BlockScores
from blockexport.errors import ProfileError
from blockexport.routing.estimate import estimate
from blockexport.routing.request import RoutingRequest
from blockexport.selection import depths_for_budget, resolve_depths

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
        ProfileError: the fit is of another kind of model, or knows only the depths that were measured.
    """
    if fit.uses_table:
        msg = "this profile is a table of measured levels, which says nothing of other depths; give --depths instead"
        raise ProfileError(msg)
    # Every term of the latency model is linear in depth, so two depths say all.
    one, two = (estimate(fit, "", depth, request).bound_ms for depth in (1, 2))
    per_block_ms = max(0.0, two - one)
    fixed_ms = max(0.0, one - per_block_ms)
    chosen = {depths_for_budget(fixed_ms, per_block_ms, budget, num_blocks) for budget in budgets_ms}
    return tuple(sorted({num_blocks, *chosen}, reverse=True))

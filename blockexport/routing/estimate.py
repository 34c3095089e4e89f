"""What one level would take for one request."""

from dataclasses import dataclass

from blockexport.core.latency import LatencyBudget
from blockexport.core.latency_fit import LatencyFit
from blockexport.routing.request import RoutingRequest


@dataclass(frozen=True, slots=True)
class LevelEstimate:
    """Predictions and bounds of one level for one request, in milliseconds; a bound is never below its prediction.

    Attributes:
        level: name of the level.
        depth: its kept blocks.
        predicted_ms: from the call to the last token.
        bound_ms: bound of the same.
        ttft_ms: to the first token; for single-pass models the whole pass.
        ttft_bound_ms: bound of the same.
        tpot_ms: mean time for each token after the first; None when there is no such token.
        tpot_bound_ms: bound of the same.
        vision_ms: the part of `ttft_ms` that reads pictures, which is the same for all levels.
        gap_bound_ms: bound of the slowest step, which is the last; None when there is none.
    """

    level: str
    depth: int
    predicted_ms: float
    bound_ms: float
    ttft_ms: float
    ttft_bound_ms: float
    tpot_ms: float | None = None
    tpot_bound_ms: float | None = None
    vision_ms: float = 0.0
    gap_bound_ms: float | None = None

    def misses(self, budget: LatencyBudget | None) -> tuple[str, ...]:
        """Each given limit that the bound exceeds, in words; empty when everything fits."""
        if budget is None:
            return ()
        pairs = (
            ("end to end", self.bound_ms, budget.e2e_ms),
            ("first token", self.ttft_bound_ms, budget.ttft_ms),
            ("per token", self.tpot_bound_ms, budget.tpot_ms),
            ("gap", self.gap_bound_ms, budget.gap_ms),
        )
        return tuple(
            f"{name} {bound:.6g} > {limit:.6g} ms"
            for name, bound, limit in pairs
            if bound is not None and limit is not None and bound > limit
        )


def estimate(
    fit: LatencyFit, level: str, depth: int, request: RoutingRequest, vision: LevelEstimate | None = None
) -> LevelEstimate:
    """Predict one level: N generated tokens cost one prefill and N-1 decode steps over a growing cache.

    Args:
        fit: the latency model.
        level: name of the level.
        depth: its kept blocks.
        request: size of the request.
        vision: what reading the request's pictures takes before the prefill; None without pictures.

    Raises:
        ProfileError: the fit lacks a phase.
    """
    batch, prompt, steps = request.batch, request.prompt_tokens, request.decode_steps
    if fit.forward is not None:
        pass_ms, pass_bound_ms = fit.forward_ms(depth, batch), fit.forward_bound_ms(depth, batch)
        return LevelEstimate(level, depth, pass_ms, pass_bound_ms, pass_ms, pass_bound_ms)
    first_ms = fit.prefill_ms(depth, batch, prompt)
    first_bound_ms = fit.prefill_bound_ms(depth, batch, prompt)
    if vision is not None:
        first_ms += vision.predicted_ms
        first_bound_ms += vision.bound_ms
    rest_ms = fit.decode_total_ms(depth, batch, prompt, steps)
    rest_bound_ms = fit.decode_total_bound_ms(depth, batch, prompt, steps)
    return LevelEstimate(
        level=level,
        depth=depth,
        predicted_ms=first_ms + rest_ms,
        bound_ms=first_bound_ms + rest_bound_ms,
        ttft_ms=first_ms,
        ttft_bound_ms=first_bound_ms,
        tpot_ms=rest_ms / steps if steps else None,
        tpot_bound_ms=rest_bound_ms / steps if steps else None,
        vision_ms=0.0 if vision is None else vision.predicted_ms,
        gap_bound_ms=fit.decode_bound_ms(depth, batch, prompt + steps - 1) if steps else None,
    )

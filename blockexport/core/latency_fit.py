"""The latency model: what depth, batch, prompt and cache length cost.

Time is a sum of non-negative terms (`TERMS`): a part that no pruning removes, and a part per kept block. Where that
does not hold on points that the fit has not seen, a phase has a table of what was measured instead.
"""

import math
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, model_validator

from blockexport.core.latency_table import PhaseTable
from blockexport.core.model import ModelKind
from blockexport.errors import ProfileError

Phase = Literal["prefill", "decode", "forward"]

PHASES: Mapping[ModelKind, tuple[Phase, ...]] = MappingProxyType(
    {"decoder": ("prefill", "decode"), "encoder": ("forward",), "vision": ("forward",)}
)
"""What is measured for each kind of model, in the order in which a request goes through it."""

TERMS: Mapping[Phase, tuple[str, ...]] = MappingProxyType(
    {
        "prefill": ("1", "batch", "batch*new", "depth", "depth*batch*new", "depth*batch*new*(cached+new/2)"),
        "decode": ("1", "batch", "depth", "depth*batch", "depth*batch*cached"),
        "forward": ("1", "batch", "depth", "depth*batch"),
    }
)
"""The terms of each phase; `new` and `cached` count tokens per row."""

# Parts of a generation that are predicted one by one where time is no line over the cache length.
_TABLE_STEPS = 8
_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
# 0.95 quantile of the standard normal distribution.
_NORMAL_P95 = 1.645


def term_values(phase: Phase, depth: int, batch: int, new_tokens: float, kv_tokens: float) -> tuple[float, ...]:
    """What each coefficient of `TERMS[phase]` is multiplied with, in that order."""
    if phase == "prefill":
        tokens = batch * new_tokens
        # Row t of a prompt attends to the cached tokens and to t of its own: new/2 of these on average.
        return (1.0, batch, tokens, depth, depth * tokens, depth * tokens * (kv_tokens + new_tokens / 2))
    if phase == "decode":
        return (1.0, batch, depth, depth * batch, depth * batch * kv_tokens)
    return (1.0, batch, depth, depth * batch)


class Residuals(BaseModel):
    """How far the measurements at one batch size lie from the predictions.

    Kept per batch size, because kernels change with it: a model linear in the batch may be exact at one row and off
    by half at two, and the bounds for one row must not pay for that.

    Attributes:
        batch: rows.
        log_p95_q50: median over the points of log(measured p95 / predicted).
        log_p95_q95: 0.95 quantile of the same.
        log_p95_max: the largest.
        log_mean_q95: 0.95 quantile of log(measured mean / predicted).
        spread_q95: 0.95 quantile of standard deviation / predicted.
        num_points: points at this batch size.
    """

    model_config = _FROZEN

    batch: PositiveInt
    log_p95_q50: float
    log_p95_q95: float
    log_p95_max: float
    log_mean_q95: float
    spread_q95: NonNegativeFloat
    num_points: PositiveInt

    def margin(self, num_calls: int = 1) -> float:
        """Factor from the prediction of `num_calls` calls in a row to the bound of their sum, never below 1.

        One call: e^(0.95 quantile of log(p95 / predicted)), so at least 95 % of the points have their p95 within it.

        Of n calls, what fluctuates from call to call averages out, and what is off for all of them does not:
        mean + k / sqrt(n), with k the distance from mean to p95, and no less than 1.645 standard deviations, which
        also see stalls too rare for the p95 of one call. This holds for fluctuations that are independent; a host
        that slows down for the whole request is what a router has to track.
        """
        tail = math.exp(self.log_p95_q95)
        if num_calls > 1:
            mean = math.exp(self.log_mean_q95)
            tail = mean + max(tail - mean, _NORMAL_P95 * self.spread_q95) / math.sqrt(num_calls)
        return max(1.0, tail)


class PhaseFit(BaseModel):
    """The model of one phase: non-negative coefficients or a table, and how far the measurements lie from it.

    Attributes:
        terms: what each coefficient is multiplied with; always `TERMS` of the phase.
        coefficients: milliseconds per unit of each term, all >= 0, so that no prediction falls with depth.
        residuals: one entry for each measured batch size.
        relative_error_p95: 0.95 quantile of |predicted / measured median - 1|, on the points of the fit.
        r2: share of the variance of log medians that the fit explains; None when they do not vary.
        num_points: points of the fit.
        held_out_error_p95: 0.95 quantile of the coefficients' relative error on points that were left out of a fit;
            None when there were too few to leave any out.
        table: used in place of the coefficients, because these are too far off or the levels are not alike.
    """

    model_config = _FROZEN

    terms: tuple[str, ...]
    coefficients: tuple[NonNegativeFloat, ...]
    residuals: tuple[Residuals, ...]
    relative_error_p95: NonNegativeFloat
    r2: float | None
    num_points: PositiveInt
    held_out_error_p95: NonNegativeFloat | None = None
    table: PhaseTable | None = None

    def margin(self, batch: int, num_calls: int = 1) -> float:
        """Factor from prediction to bound; for a batch size that was not measured, the largest of all."""
        exact = [entry for entry in self.residuals if entry.batch == batch]
        return max(entry.margin(num_calls) for entry in exact or self.residuals)

    def predict(self, values: tuple[float, ...]) -> float:
        """Milliseconds that the coefficients give for the term values of `term_values`."""
        return sum(map(operator.mul, self.coefficients, values), 0.0)

    @property
    def basis(self) -> str:
        """What predictions rest on, for people."""
        error = self.held_out_error_p95
        checked = (
            "with too few points to hold any out" if error is None else f"{error:.1%} off at p95 of held-out points"
        )
        return f"coefficients, {checked}" if self.table is None else f"a table of medians (coefficients, {checked})"

    def at(self, phase: Phase, depth: int, batch: int, new_tokens: float, kv_tokens: float) -> float:
        """Milliseconds for a shape of this phase, by the table where there is one."""
        values = term_values(phase, depth, batch, new_tokens, kv_tokens)
        if self.table is None:
            return self.predict(values)
        if phase != "prefill":
            return self.table.at(depth, batch, kv_tokens)
        # Prompts are measured with an empty cache; what a filled one adds, only the coefficients say.
        empty = term_values(phase, depth, batch, new_tokens, 0)
        return self.table.at(depth, batch, new_tokens) + self.predict(values) - self.predict(empty)


class LatencyFit(BaseModel):
    """Closed-form latency by depth, batch, prompt and cache length, all in milliseconds.

    A `*_bound_ms` is the prediction times a margin that covers the measured p95 (`Residuals.margin`), and never less
    than the prediction. A phase that was not measured is None.
    """

    model_config = _FROZEN

    prefill: PhaseFit | None = None
    decode: PhaseFit | None = None
    forward: PhaseFit | None = None

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        for phase, terms in TERMS.items():
            fit: PhaseFit | None = getattr(self, phase)
            if fit is not None and (fit.terms != terms or len(fit.coefficients) != len(terms) or not fit.residuals):
                msg = (
                    f"the {phase} fit has {len(fit.coefficients)} coefficients of {list(fit.terms)} and "
                    f"{len(fit.residuals)} residuals, this version needs one each of {list(terms)}; profile again"
                )
                raise ProfileError(msg)
        return self

    def phase(self, phase: Phase) -> PhaseFit:
        """The model of one phase.

        Raises:
            ProfileError: the phase was not measured.
        """
        fit: PhaseFit | None = getattr(self, phase)
        if fit is None:
            has = [name for name in TERMS if getattr(self, name) is not None]
            msg = (
                f"the profile holds no {phase} measurements, only {', '.join(has) or 'none'}; profile this model again"
            )
            raise ProfileError(msg)
        return fit

    @property
    def bases(self) -> dict[str, str]:
        """`PhaseFit.basis` of each phase that was measured."""
        fits = {phase: getattr(self, phase) for phase in TERMS}
        return {phase: fit.basis for phase, fit in fits.items() if fit is not None}

    @property
    def uses_table(self) -> bool:
        """Whether a phase is predicted from a table, which knows the measured levels only."""
        return any(fit is not None and fit.table is not None for fit in (self.prefill, self.decode, self.forward))

    @property
    def measured_depths(self) -> list[set[int]]:
        """Of each phase that has a table, the depths that it knows."""
        phases = (self.prefill, self.decode, self.forward)
        return [set(fit.table.levels) for fit in phases if fit is not None and fit.table is not None]

    def prefill_ms(self, depth: int, batch: int, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Feeding `prompt_tokens` per row behind `cached_tokens`, up to the first new token."""
        return self.phase("prefill").at("prefill", depth, batch, prompt_tokens, cached_tokens)

    def decode_ms(self, depth: int, batch: int, kv_tokens: float) -> float:
        """One decode step with `kv_tokens` per row in the cache before it."""
        return self.phase("decode").at("decode", depth, batch, 1, kv_tokens)

    def decode_total_ms(self, depth: int, batch: int, kv_tokens: int, steps: int) -> float:
        """`steps` decode steps, the first with `kv_tokens` in the cache, each leaving one more."""
        if steps < 1:
            return 0.0
        # Where a step is linear in the cache length, the sum is that of `steps` steps at the mean length.
        parts = 1 if self.phase("decode").table is None else min(steps, _TABLE_STEPS)
        lengths = (kv_tokens + (steps * (2 * part + 1) / parts - 1) / 2 for part in range(parts))
        return steps / parts * sum(self.decode_ms(depth, batch, length) for length in lengths)

    def forward_ms(self, depth: int, batch: int) -> float:
        """One pass of a single-pass model at its profiled input size."""
        return self.phase("forward").at("forward", depth, batch, 0, 0)

    def prefill_bound_ms(self, depth: int, batch: int, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Bound of `prefill_ms`."""
        return self.prefill_ms(depth, batch, prompt_tokens, cached_tokens) * self.phase("prefill").margin(batch)

    def decode_bound_ms(self, depth: int, batch: int, kv_tokens: float) -> float:
        """Bound of `decode_ms`."""
        return self.decode_ms(depth, batch, kv_tokens) * self.phase("decode").margin(batch)

    def decode_total_bound_ms(self, depth: int, batch: int, kv_tokens: int, steps: int) -> float:
        """Bound of `decode_total_ms`; less than the sum of the bounds of its steps, see `Residuals.margin`."""
        return self.decode_total_ms(depth, batch, kv_tokens, steps) * self.phase("decode").margin(batch, steps)

    def forward_bound_ms(self, depth: int, batch: int) -> float:
        """Bound of `forward_ms`."""
        return self.forward_ms(depth, batch) * self.phase("forward").margin(batch)

    def offset_ms(self, phase: Phase, batch: int = 1, new_tokens: int = 0) -> float:
        """The part that no pruning removes (embedding, head, launch): what the coefficients give at depth 0.

        `new_tokens` counts for prefill only, where embedding and head see every prompt token. Of a profile with a
        single depth this says nothing: one depth cannot tell what depends on depth.
        """
        return self.phase(phase).predict(term_values(phase, 0, batch, new_tokens, 0))

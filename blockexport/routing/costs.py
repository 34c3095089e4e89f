"""The latency model as straight lines over depth, which is what makes a decision over many levels cheap.

At a given batch and length a prefill or a decode step takes `fixed + depth * slope` milliseconds (see `TERMS`), so the
deepest level that meets a deadline is a division, not a search.
"""

from dataclasses import dataclass
from typing import Self

from blockexport.core.latency_fit import LatencyFit

# Added to what a block costs, so that any budget can be divided by it.
_LEAST_SLOPE_MS = 1e-9

Line = tuple[float, float]
"""Milliseconds at depth 0, and for each block."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Coefficients of the prefill and decode phases, in milliseconds per unit of their terms."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    @classmethod
    def of(cls, fit: LatencyFit) -> Self:
        """Of a fit.

        Raises:
            ProfileError: the fit lacks prefill or decode.
        """
        return cls(fit.phase("prefill").coefficients, fit.phase("decode").coefficients)

    def prefill_line(self, new_tokens: float, cached_tokens: float = 0.0) -> Line:
        """One row's `new_tokens` run behind `cached_tokens`."""
        one, row, token, block, work, attended = self.prefill
        slope = _LEAST_SLOPE_MS + block + new_tokens * (work + attended * (cached_tokens + new_tokens / 2))
        return one + row + token * new_tokens, slope

    def decode_line(self, num_rows: float, sum_kv_tokens: float) -> Line:
        """One step of `num_rows` rows with `sum_kv_tokens` in their caches together."""
        one, row, block, work, attended = self.decode
        return one + row * num_rows, _LEAST_SLOPE_MS + block + work * num_rows + attended * sum_kv_tokens

"""The latency model as straight lines over depth, which is what makes a decision over many levels cheap.

At a given batch and length a prefill or a decode step takes `fixed + depth * slope` milliseconds (see `TERMS`), so the
deepest level that meets a deadline is a division, not a search. Where the profile has a table, the line lies on or
above what was measured of every level (`cost_table.py`).
"""

from dataclasses import dataclass
from typing import Self

from blockexport.core.latency_fit import LatencyFit
from blockexport.routing.cost_table import CostTable, Line

__all__ = ["Line", "StepCosts"]

# Added to what a block costs, so that any budget can be divided by it.
_LEAST_SLOPE_MS = 1e-9


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Coefficients of the prefill and decode phases, in milliseconds per unit of their terms.

    Attributes:
        prefill: coefficients; where there is a table, what a filled cache adds to a prompt.
        decode: coefficients.
        prefill_table: used in place of the coefficients.
        decode_table: used in place of the coefficients.
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    prefill_table: CostTable | None = None
    decode_table: CostTable | None = None

    @classmethod
    def of(cls, fit: LatencyFit) -> Self:
        """Of a fit.

        Raises:
            ProfileError: the fit lacks prefill or decode.
        """
        prefill, decode = fit.phase("prefill"), fit.phase("decode")
        tables = [None if phase.table is None else CostTable.of(phase.table) for phase in (prefill, decode)]
        return cls(prefill.coefficients, decode.coefficients, *tables)

    def prefill_line(self, new_tokens: float, cached_tokens: float = 0.0) -> Line:
        """One row's `new_tokens` run behind `cached_tokens`."""
        one, row, token, block, work, attended = self.prefill
        if self.prefill_table is not None:
            fixed, slope = self.prefill_table.line(1, new_tokens)
            return fixed, _LEAST_SLOPE_MS + slope + attended * new_tokens * cached_tokens
        slope = _LEAST_SLOPE_MS + block + new_tokens * (work + attended * (cached_tokens + new_tokens / 2))
        return one + row + token * new_tokens, slope

    def decode_line(self, num_rows: float, sum_kv_tokens: float) -> Line:
        """One step of `num_rows` rows with `sum_kv_tokens` in their caches together."""
        if self.decode_table is not None:
            fixed, slope = self.decode_table.line(num_rows, sum_kv_tokens / max(num_rows, 1))
            return fixed, _LEAST_SLOPE_MS + slope
        one, row, block, work, attended = self.decode
        return one + row * num_rows, _LEAST_SLOPE_MS + block + work * num_rows + attended * sum_kv_tokens

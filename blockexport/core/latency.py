"""Budgets, measurements and the fitted latency model."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from blockexport.errors import ConfigError, ProfileError


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """What a request may take; at least one bound, each positive and finite.

    Attributes:
        e2e_ms: from the call to the last token.
        ttft_ms: to the first token.
        tpot_ms: mean time for each token after the first.
    """

    e2e_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("e2e_ms", "ttft_ms", "tpot_ms")}
        if all(value is None for value in given.values()):
            msg = "an empty budget; give at least one of e2e_ms, ttft_ms, tpot_ms"
            raise ConfigError(msg)
        for name, value in given.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                msg = f"budget {name} is {value}; it must be a positive, finite number of milliseconds"
                raise ConfigError(msg)


class DistributionSummary(BaseModel):
    """Repeated measurements of one thing, in milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    min_ms: float
    p50_ms: float
    p95_ms: float
    mean_ms: float

    @classmethod
    def of(cls, samples_ms: list[float]) -> Self:
        """Summarise at least one measurement.

        Raises:
            ProfileError: there is none.
        """
        if not samples_ms:
            msg = "no measurements to summarise; run at least one repetition"
            raise ProfileError(msg)
        p50, p95 = np.percentile(samples_ms, [50, 95])
        return cls(
            n=len(samples_ms),
            min_ms=min(samples_ms),
            p50_ms=float(p50),
            p95_ms=float(p95),
            mean_ms=float(np.mean(samples_ms)),
        )

    def to_json(self) -> dict[str, Any]:
        """The summary as profiles hold it."""
        return self.model_dump(mode="json")

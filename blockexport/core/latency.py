"""Budgets, measurements, and the latency profile that a host keeps of a bundle."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency_fit import PHASES, LatencyFit, Phase, PhaseFit, Residuals
from blockexport.core.model import ModelKind
from blockexport.errors import ConfigError, ProfileError

__all__ = [
    "DistributionSummary",
    "LatencyBudget",
    "LatencyFit",
    "LatencyPoint",
    "LatencyProfile",
    "Phase",
    "PhaseFit",
    "Residuals",
]

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """What a request may take; at least one bound, each positive and finite.

    Attributes:
        e2e_ms: from the call to the last token.
        ttft_ms: to the first token.
        tpot_ms: mean time for each token after the first.
        gap_ms: longest time between two tokens.
    """

    e2e_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    gap_ms: float | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("e2e_ms", "ttft_ms", "tpot_ms", "gap_ms")}
        if all(value is None for value in given.values()):
            msg = "an empty budget; give at least one of e2e_ms, ttft_ms, tpot_ms, gap_ms"
            raise ConfigError(msg)
        for name, value in given.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                msg = f"budget {name} is {value}; it must be a positive, finite number of milliseconds"
                raise ConfigError(msg)


class DistributionSummary(BaseModel):
    """Repeated measurements of one thing, in milliseconds."""

    model_config = _FROZEN

    n: PositiveInt
    min_ms: float
    p50_ms: float
    p95_ms: float
    mean_ms: float
    std_ms: NonNegativeFloat

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
            std_ms=float(np.std(samples_ms)),
        )

    def to_json(self) -> dict[str, Any]:
        """The summary as profiles hold it."""
        return self.model_dump(mode="json")


class LatencyPoint(BaseModel):
    """One measured shape of one level.

    Attributes:
        level: name of the level.
        depth: its kept blocks.
        phase: what was run.
        batch: rows.
        new_tokens: tokens fed per row: the prompt length, 1 for decode, 0 for single-pass models.
        kv_tokens: tokens per row that lay in the cache before.
        summary: the measurements.
    """

    model_config = _FROZEN

    level: str
    depth: PositiveInt
    phase: Phase
    batch: PositiveInt
    new_tokens: NonNegativeInt
    kv_tokens: NonNegativeInt
    summary: DistributionSummary


class LatencyProfile(BaseModel):
    """What was measured for one bundle on one host, and the model fitted to it.

    Attributes:
        schema_version: of this file format.
        host: where it was measured.
        bundle_digest: which bundle was measured.
        threads: threads the engines used.
        kind: decoders have prefill and decode points, all others forward points.
        context_tokens: most tokens of prompt and answer together; 0 when unlimited or not tokens.
        quick: whether the short grid was used.
        points: at least one.
        fit: the latency model.
        vision: the same of the vision side of a model that reads pictures, its batches counting crops; the part of
            a request that no depth of the decoder changes. None, and left out, without one.
    """

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    host: HostFingerprint
    bundle_digest: str
    threads: PositiveInt
    kind: ModelKind
    context_tokens: NonNegativeInt = 0
    quick: bool
    points: tuple[LatencyPoint, ...]
    fit: LatencyFit
    vision: "LatencyProfile | None" = None

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        if not self.points:
            msg = "a profile without measurements; run `blockexport profile` on this host"
            raise ProfileError(msg)
        for phase in PHASES[self.kind]:
            self.fit.phase(phase)
        return self

    @cached_property
    def levels(self) -> dict[str, int]:
        """Depth of each measured level, deepest first."""
        found = {point.level: point.depth for point in self.points}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def level_summary(self) -> list[dict[str, Any]]:
        """One row per level, deepest first: measured medians at one row and the longest prompt and cache measured.

        `p50`, `p95` and `n` belong to the decode step, for single-pass models to the whole pass; these have the time
        of the pass as `prefill_ms`, and None as `decode_ms`. All times in milliseconds.
        """
        rows = []
        for name, depth in self.levels.items():
            first = self._reference(name, PHASES[self.kind][0])
            last = self._reference(name, PHASES[self.kind][-1])
            rows.append(
                {
                    "name": name,
                    "depth": depth,
                    "prefill_ms": first.summary.p50_ms,
                    "decode_ms": last.summary.p50_ms if last.phase == "decode" else None,
                    "p50": last.summary.p50_ms,
                    "p95": last.summary.p95_ms,
                    "n": last.summary.n,
                    "prompt_tokens": first.new_tokens,
                    "kv_tokens": last.kv_tokens,
                }
            )
        return rows

    def _reference(self, level: str, phase: Phase) -> LatencyPoint:
        points = [point for point in self.points if (point.level, point.phase) == (level, phase)]
        if not points:
            msg = f"level {level} has no {phase} measurement; profile again with a longer time limit"
            raise ProfileError(msg)
        return min(points, key=lambda point: (point.batch, -point.new_tokens, -point.kv_tokens))

    def to_json(self) -> dict[str, Any]:
        """The profile as its file holds it."""
        value = self.model_dump(mode="json")
        if self.vision is None:
            del value["vision"]
        else:
            value["vision"] = self.vision.to_json()
        return value

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` gave.

        Raises:
            ProfileError: the value is no profile of this version.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            msg = f"not a latency profile ({where}: {first['msg']}); write one with `blockexport profile`"
            raise ProfileError(msg) from error

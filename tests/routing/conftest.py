"""A latency profile with round figures, and levels to choose from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency import DistributionSummary, LatencyPoint, LatencyProfile
from blockexport.core.latency_fit import PHASES, TERMS, LatencyFit, Phase, PhaseFit, Residuals
from blockexport.core.model import ModelKind
from blockexport.core.quality import MetricValue, Quality

HOST = HostFingerprint(cpu="x", cpu_features=(), num_cpus=1, system="Linux", python="3.11", packages={})
# Prefill: 2 ms, 0.1 ms per block, 0.01 ms per block and prompt token. Decode: 1 ms, 0.5 ms per block, 0.001 ms per
# block and cached token.
COEFFICIENTS: dict[Phase, tuple[float, ...]] = {
    "prefill": (2.0, 0.0, 0.0, 0.1, 0.01, 0.0),
    "decode": (1.0, 0.0, 0.5, 0.0, 0.001),
    "forward": (1.0, 0.5, 0.0, 0.25),
}


@dataclass(frozen=True)
class Level:
    name: str
    depth: int
    quality: Quality | None = None


def _make_profile(
    depths: Sequence[int] = (16, 12, 8, 4),
    kind: ModelKind = "decoder",
    log_q95: float = 0.0,
    context_tokens: int = 1024,
    coefficients: dict[Phase, tuple[float, ...]] = COEFFICIENTS,
) -> LatencyProfile:
    fits = {
        phase: PhaseFit(
            terms=TERMS[phase],
            coefficients=coefficients[phase],
            residuals=(
                Residuals(
                    batch=1,
                    log_p95_q50=0.0,
                    log_p95_q95=log_q95,
                    log_p95_max=log_q95,
                    log_mean_q95=log_q95 / 2,
                    spread_q95=0.1,
                    num_points=4,
                ),
            ),
            relative_error_p95=0.0,
            r2=1.0,
            num_points=4,
        )
        for phase in PHASES[kind]
    }
    points = tuple(
        LatencyPoint(
            level=f"d{depth}",
            depth=depth,
            phase=phase,
            batch=1,
            new_tokens=1,
            kv_tokens=0,
            summary=DistributionSummary.of([1.0]),
        )
        for depth in depths
        for phase in PHASES[kind]
    )
    return LatencyProfile(
        host=HOST,
        bundle_digest="b",
        threads=1,
        kind=kind,
        context_tokens=context_tokens,
        quick=True,
        points=points,
        fit=LatencyFit(**fits),
    )


def _make_levels(
    depths: Sequence[int] = (16, 12, 8, 4), qualities: Sequence[float] | None = None, *, higher_is_better: bool = True
) -> list[Level]:
    if qualities is None:
        return [Level(f"d{depth}", depth) for depth in depths]
    return [
        Level(f"d{depth}", depth, Quality({"m": MetricValue(value, 0.0, 10, higher_is_better)}))
        for depth, value in zip(depths, qualities, strict=True)
    ]


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., LatencyProfile]:
    return _make_profile


@pytest.fixture(scope="session")
def make_levels() -> Callable[..., list[Level]]:
    return _make_levels

"""Measure a workload on this host and fit its latency model."""

import time
from dataclasses import replace

from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency import LatencyProfile
from blockexport.core.latency_fit import PHASES
from blockexport.errors import ProfileError
from blockexport.profiling.fit import fit_latency
from blockexport.profiling.grid import FULL, QUICK, build_grid
from blockexport.profiling.harness import Clock, Progress, Workload, measure


def profile(
    workload: Workload,
    *,
    bundle_digest: str,
    host: HostFingerprint,
    threads: int,
    levels_alike: bool = True,
    quick: bool = False,
    time_limit_s: float | None = None,
    clock: Clock = time.perf_counter_ns,
    on_progress: Progress | None = None,
) -> LatencyProfile:
    """Measure every level and fit the latency model.

    Args:
        workload: the loaded bundle.
        bundle_digest: kept in the profile, so that a profile of another bundle is recognised.
        host: this host, kept in the profile.
        threads: threads the engines use, kept in the profile.
        levels_alike: whether levels differ in depth only, see `fit_latency`.
        quick: few shapes and repeats, within 20 s, instead of all within 10 minutes.
        time_limit_s: another limit; measuring then stops with the shapes and repeats it has.
        clock: monotonic nanoseconds.
        on_progress: called with steps done and steps in all.

    Raises:
        ConfigError: the time limit is not a positive, finite number.
        ProfileError: the workload has no level, or the limit ended before each phase was measured.
    """
    effort = QUICK if quick else FULL
    if time_limit_s is not None:
        effort = replace(effort, time_limit_s=time_limit_s)
    points = measure(
        workload,
        build_grid(workload.kind, workload.context_tokens, quick=quick),
        clock=clock,
        repeats=effort.repeats,
        warmup=effort.warmup,
        lead=effort.lead,
        burst=effort.burst,
        sweeps=effort.sweeps,
        time_limit_s=effort.time_limit_s,
        on_progress=on_progress,
    )
    missing = set(PHASES[workload.kind]) - {point.phase for point in points}
    if missing:
        msg = f"the limit of {effort.time_limit_s:g} s ended before {', '.join(sorted(missing))} was measured; raise it"
        raise ProfileError(msg)
    return LatencyProfile(
        host=host,
        bundle_digest=bundle_digest,
        threads=threads,
        kind=workload.kind,
        context_tokens=workload.context_tokens,
        quick=quick,
        points=tuple(points),
        fit=fit_latency(points, levels_alike=levels_alike),
    )

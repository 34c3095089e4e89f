"""Latency of a loaded bundle on this host."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockexport.bundle.manifest import LevelEntry
from blockexport.bundle.reader import Bundle
from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency import LatencyProfile
from blockexport.errors import ProfileError
from blockexport.profiling.grid import FULL, QUICK
from blockexport.profiling.harness import Progress
from blockexport.profiling.profile import profile as measure
from blockexport.runtime.engines import Engines
from blockexport.runtime.workload import RuntimeWorkload

if TYPE_CHECKING:
    from blockexport.runtime.runtime import Runtime

# Few shapes: it has no cache.
_VISION_SHARE = 0.2


def profile(
    runtime: "Runtime",
    *,
    quick: bool = False,
    time_limit_s: float | None = None,
    on_progress: Progress | None = None,
) -> LatencyProfile:
    """Measure every level on this host, and keep the latency model in the bundle, where `plan` looks for it.

    Args:
        runtime: the loaded bundle.
        quick: few shapes and repeats, within 20 s, instead of all within 10 minutes.
        time_limit_s: another limit; measuring then stops with the shapes and repeats it has.
        on_progress: called with steps done and steps in all.

    Raises:
        BundleError: the profile cannot be written into the bundle.
        ConfigError: the time limit is not a positive, finite number.
        ProfileError: the limit ended before each phase was measured.
    """
    host, manifest, vision = HostFingerprint.detect(), runtime.bundle.manifest, runtime.engines.vision
    threads = runtime.engines.threads or host.num_cpus

    def measured(engines: Engines, levels: Sequence[LevelEntry], limit_s: float | None) -> LatencyProfile:
        return measure(
            RuntimeWorkload(engines, engines.spec, [(level.name, level.depth) for level in levels]),
            bundle_digest=manifest.digest,
            host=host,
            threads=threads,
            levels_alike=len({level.precision for level in levels}) == 1,
            quick=quick,
            time_limit_s=limit_s,
            on_progress=on_progress,
        )

    if vision is None or manifest.vision is None:
        found = measured(runtime.engines, manifest.levels, time_limit_s)
    else:
        limit_s = (QUICK if quick else FULL).time_limit_s if time_limit_s is None else time_limit_s
        side = measured(vision, manifest.vision.levels, _VISION_SHARE * limit_s)
        decoder = measured(runtime.engines, manifest.levels, (1 - _VISION_SHARE) * limit_s)
        found = decoder.model_copy(update={"vision": side})
    runtime.bundle.write_profile(_key(host, threads), found.to_json())
    return found


def _key(host: HostFingerprint, threads: int) -> str:
    """File name of a profile: fewer threads than there are processors are another host, as far as time goes."""
    return host.key if threads == host.num_cpus else f"{host.key}-{threads}"


def stored_profile(bundle: Bundle, threads: int = 0) -> LatencyProfile:
    """What `profile` kept for this host.

    Args:
        bundle: where it lies.
        threads: of the engines; 0 for as many as there are processors.

    Raises:
        ProfileError: this host was not profiled, or the host or bundle has changed since.
    """
    host = HostFingerprint.detect()
    stored = bundle.read_profiles().get(_key(host, threads or host.num_cpus))
    if stored is None:
        option = f" --threads {threads}" if threads else ""
        msg = f"no latency profile of this host in {bundle.folder.name}; run `blockexport profile{option}` on it first"
        raise ProfileError(msg)
    profile = LatencyProfile.from_json(stored)
    if profile.bundle_digest != bundle.manifest.digest:
        msg = "the latency profile is of another build of this bundle; run `blockexport profile` again"
        raise ProfileError(msg)
    return profile

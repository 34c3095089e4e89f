import json
from collections.abc import Callable
from typing import Any

import pytest

from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency import LatencyProfile
from blockexport.errors import ConfigError, ProfileError
from blockexport.profiling.profile import profile

Make = Callable[..., Any]
HOST = HostFingerprint(cpu="x", cpu_features=(), num_cpus=1, system="Linux", python="3.11", packages={})


def run(workload: Any, **options: Any) -> LatencyProfile:
    return profile(workload, bundle_digest="abc", host=HOST, threads=1, clock=workload.clock, **options)


@pytest.mark.parametrize("quick", [True, False])
def test_a_decoder_is_measured_and_predicted(make_workload: Make, quick: bool) -> None:
    workload = make_workload()
    result = run(workload, quick=quick)
    assert (result.kind, result.context_tokens, result.quick, result.bundle_digest) == ("decoder", 256, quick, "abc")
    assert result.levels == {"d4": 4, "d3": 3, "d1": 1}
    # The made-up costs are of the model's own form, so it must predict a shape that was not measured.
    assert result.fit.decode_ms(2, 3, 100) == pytest.approx(workload.cost_ms("decode", 2, 3, 100), rel=1e-3)
    assert result.fit.offset_ms("decode") == pytest.approx(1.0, rel=1e-3)
    assert result.points[0].summary.n == (12 if quick else 40)


def test_a_single_pass_model_has_forward_points_only(make_workload: Make) -> None:
    result = run(make_workload(kind="vision", context_tokens=0), quick=True)
    assert {point.phase for point in result.points} == {"forward"}
    assert result.fit.forward_ms(2, 3) == pytest.approx(1 + 2 * (0.5 + 0.3), rel=1e-3)
    assert [row["decode_ms"] for row in result.level_summary()] == [None] * 3


def test_a_profile_survives_its_file(make_workload: Make) -> None:
    result = run(make_workload(), quick=True)
    assert LatencyProfile.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_the_same_clock_gives_the_same_profile(make_workload: Make) -> None:
    assert run(make_workload(), quick=True) == run(make_workload(), quick=True)


def test_a_slow_model_ends_within_the_limit_with_what_it_has(make_workload: Make) -> None:
    # A prefill of 16 tokens takes 1 s, one of 256 takes 16 s: all repeats of all cells would take an hour.
    workload = make_workload(
        levels=[("d2", 2), ("d1", 1)],
        cost_ms=lambda phase, depth, batch, tokens: depth * (tokens * 30.0 if phase == "prefill" else 20.0) * batch,
    )
    result = run(workload, quick=True, time_limit_s=60.0)
    assert {point.phase for point in result.points} == {"prefill", "decode"}
    assert workload.now_ns < 90e9
    assert {point.level for point in result.points} == {"d1", "d2"}


def test_a_limit_too_short_for_all_phases_is_named(make_workload: Make) -> None:
    workload = make_workload(cost_ms=lambda *_: 500.0)
    with pytest.raises(ProfileError, match=r"limit of 1 s ended before prefill was measured"):
        run(workload, quick=True, time_limit_s=1.0)


def test_a_bad_limit_is_refused(make_workload: Make) -> None:
    with pytest.raises(ConfigError, match="time limit"):
        run(make_workload(), time_limit_s=-1.0)


def test_progress_ends_at_the_total(make_workload: Make) -> None:
    seen: list[tuple[int, int]] = []
    run(make_workload(), quick=True, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen)

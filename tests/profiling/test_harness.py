import math
from collections.abc import Callable
from itertools import count, cycle
from typing import Any

import pytest

from blockexport.errors import ConfigError, ProfileError
from blockexport.profiling.grid import GridCell
from blockexport.profiling.harness import measure

CELL = GridCell("decode", 1, 1, 16)
OTHER = GridCell("prefill", 2, 32, 0)

Make = Callable[..., Any]


def test_levels_are_interleaved_in_rotating_order(make_workload: Make) -> None:
    workload = make_workload()
    measure(workload, [CELL], clock=workload.clock, repeats=4, warmup=0)
    order = [level for _, level, _, _ in workload.log]
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert rounds == [["d4", "d3", "d1"], ["d3", "d1", "d4"], ["d1", "d4", "d3"], ["d4", "d3", "d1"]]


def test_warm_up_runs_but_does_not_count(make_workload: Make) -> None:
    # The first two calls of each of the three levels take a second longer.
    workload = make_workload(extra_ms=(1000.0 if i < 6 else 0.0 for i in count()))
    points = measure(workload, [CELL], clock=workload.clock, repeats=5, warmup=2)
    assert len(workload.log) == 3 * (2 + 5)
    assert max(point.summary.mean_ms for point in points) < 10


def test_a_turn_is_several_calls_of_a_level_the_first_ones_untimed(make_workload: Make) -> None:
    workload = make_workload(levels=[("d4", 4), ("d1", 1)], extra_ms=cycle([1000.0, 0.0, 0.0]))
    points = measure(workload, [CELL], clock=workload.clock, repeats=4, warmup=0, lead=1, burst=2)
    assert [level for _, level, _, _ in workload.log] == ["d4"] * 3 + ["d1"] * 6 + ["d4"] * 3
    assert [point.summary.n for point in points] == [4, 4]
    assert max(point.summary.mean_ms for point in points) < 10


def test_the_last_turn_is_shorter_if_repeats_are_over(make_workload: Make) -> None:
    workload = make_workload(levels=[("d4", 4)])
    (point,) = measure(workload, [CELL], clock=workload.clock, repeats=5, warmup=0, lead=1, burst=3)
    assert point.summary.n == 5
    assert len(workload.log) == (1 + 3) + (1 + 2)


def test_points_hold_the_medians_of_their_calls(make_workload: Make) -> None:
    # One level, so that the additions fall on its calls in turn: 0, 1, 2, ... 100 ms.
    workload = make_workload(levels=[("d4", 4)], extra_ms=map(float, count()))
    (point,) = measure(workload, [CELL], clock=workload.clock, repeats=101, warmup=0)
    base = workload.cost_ms("decode", 4, 1, 16)
    assert (point.level, point.depth, point.phase, point.batch) == ("d4", 4, "decode", 1)
    assert (point.new_tokens, point.kv_tokens, point.summary.n) == (1, 16, 101)
    assert point.summary.p50_ms == pytest.approx(base + 50)
    assert point.summary.p95_ms == pytest.approx(base + 95)
    assert point.summary.min_ms == pytest.approx(base)


def test_drift_hits_all_levels_alike(make_workload: Make) -> None:
    # Every call is 1 ms slower than the one before; the same cost for each level must give the same mean.
    workload = make_workload(cost_ms=lambda *_: 1.0, extra_ms=map(float, count()))
    points = measure(workload, [CELL], clock=workload.clock, repeats=30, warmup=0)
    means = [point.summary.mean_ms for point in points]
    assert max(means) - min(means) < 1e-9


def test_each_sweep_visits_every_cell(make_workload: Make) -> None:
    workload = make_workload(levels=[("d4", 4)])
    points = measure(workload, [CELL, OTHER], clock=workload.clock, repeats=5, warmup=1, sweeps=2)
    phases = [phase for phase, *_ in workload.log]
    # 5 repeats in shares of 3 and 2, each after one call to warm up.
    assert phases == ["decode"] * 4 + ["prefill"] * 4 + ["decode"] * 3 + ["prefill"] * 3
    assert [point.summary.n for point in points] == [5, 5]
    assert [point.phase for point in points] == ["decode", "prefill"]


def test_more_sweeps_than_repeats_do_no_harm(make_workload: Make) -> None:
    workload = make_workload()
    points = measure(workload, [CELL], clock=workload.clock, repeats=2, warmup=1, sweeps=9)
    assert [point.summary.n for point in points] == [2, 2, 2]
    assert len(workload.log) == 2 * 3 * (1 + 1)


def test_the_time_limit_ends_after_a_whole_round(make_workload: Make) -> None:
    workload = make_workload(cost_ms=lambda *_: 100.0)
    points = measure(workload, [CELL, OTHER], clock=workload.clock, repeats=50, warmup=0, time_limit_s=1.0)
    # Rounds of three calls take 0.3 s: the fourth begins at 0.9 s and is finished.
    assert [(point.phase, point.summary.n) for point in points] == [("decode", 4)] * 3
    assert workload.now_ns == 1_200_000_000


def test_the_shortest_time_limit_still_measures_one_round(make_workload: Make) -> None:
    workload = make_workload(cost_ms=lambda *_: 100.0)
    points = measure(workload, [CELL, OTHER], clock=workload.clock, repeats=3, warmup=2, time_limit_s=1e-6)
    assert [(point.phase, point.summary.n) for point in points] == [("decode", 1)] * 3


def test_progress_counts_the_visits(make_workload: Make) -> None:
    workload = make_workload()
    seen: list[tuple[int, int]] = []
    measure(
        workload,
        [CELL, OTHER],
        clock=workload.clock,
        repeats=4,
        warmup=0,
        sweeps=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_call_gets_the_shape_of_the_cell(make_workload: Make) -> None:
    workload = make_workload(levels=[("d4", 4)])
    grid = [OTHER, CELL, GridCell("forward", 4, 0, 0)]
    measure(workload, grid, clock=workload.clock, repeats=1, warmup=0)
    assert workload.log == [("prefill", "d4", 2, 32), ("decode", "d4", 1, 16), ("forward", "d4", 4, 0)]


def test_the_default_clock_is_monotonic_time(make_workload: Make) -> None:
    workload = make_workload(levels=[("d4", 4)], extra_ms=cycle([0.0]))
    (point,) = measure(workload, [CELL], repeats=3, warmup=0)
    assert 0 < point.summary.p50_ms < 1000


@pytest.mark.parametrize(
    "options",
    [
        {"repeats": 0, "warmup": 0},
        {"repeats": 1, "warmup": -1},
        {"repeats": 1, "warmup": 0, "lead": -1},
        {"repeats": 1, "warmup": 0, "burst": 0},
        {"repeats": 1, "warmup": 0, "sweeps": 0},
        {"repeats": 1, "warmup": 0, "time_limit_s": 0.0},
        {"repeats": 1, "warmup": 0, "time_limit_s": math.nan},
        {"repeats": 1, "warmup": 0, "time_limit_s": math.inf},
    ],
)
def test_impossible_options_are_refused(make_workload: Make, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        measure(make_workload(), [CELL], **options)


def test_nothing_to_measure_is_refused(make_workload: Make) -> None:
    with pytest.raises(ProfileError, match="0 shapes"):
        measure(make_workload(), [], repeats=1, warmup=0)
    with pytest.raises(ProfileError, match="0 levels"):
        measure(make_workload(levels=[]), [CELL], repeats=1, warmup=0)

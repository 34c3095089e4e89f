"""Time the levels of a workload side by side."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from blockexport.core.latency import DistributionSummary, LatencyPoint
from blockexport.core.model import ModelKind
from blockexport.errors import ConfigError, ProfileError
from blockexport.profiling.grid import GridCell

Call = Callable[[], None]
Clock = Callable[[], int]
Progress = Callable[[int, int], None]


class Workload(Protocol):
    """Something with levels that can be run at given shapes; the runtime is one.

    A call that is handed out runs one shape once, as serving would, with everything it needs prepared beforehand. It
    returns when the result is there, and may be repeated: a decode call always finds `kv_tokens` in its cache.
    """

    @property
    def levels(self) -> Sequence[tuple[str, int]]:
        """Name and depth of each level."""
        ...

    @property
    def kind(self) -> ModelKind:
        """What sort of model this is."""
        ...

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer together; 0 when unlimited or not tokens."""
        ...

    def prefill_call(self, level: str, batch: int, prompt_tokens: int, /) -> Call:
        """Feeding a prompt into an empty cache."""
        ...

    def decode_call(self, level: str, batch: int, kv_tokens: int, /) -> Call:
        """One decode step."""
        ...

    def forward_call(self, level: str, batch: int, /) -> Call:
        """One pass of a single-pass model."""
        ...


def measure(
    workload: Workload,
    grid: Sequence[GridCell],
    *,
    clock: Clock = time.perf_counter_ns,
    repeats: int,
    warmup: int,
    sweeps: int = 1,
    lead: int = 0,
    burst: int = 1,
    time_limit_s: float | None = None,
    on_progress: Progress | None = None,
) -> list[LatencyPoint]:
    """Measure each cell of the grid for every level.

    In each round every level has a turn, and the next round starts with the next level: whatever drifts meanwhile hits
    all levels alike. A turn is several calls in a row, as serving makes them; levels that took turns call by call
    would each find the caches of the processor filled by the others. The grid is gone through `sweeps` times, each time
    with a share of the repeats.

    Args:
        workload: what to run.
        grid: shapes, in the order in which they are measured.
        clock: monotonic nanoseconds.
        repeats: timed calls for each cell and level.
        warmup: untimed calls of each level at each visit of a cell.
        sweeps: how often the grid is gone through; at most `repeats` times.
        lead: untimed calls at the beginning of each turn.
        burst: timed calls of a turn, at most.
        time_limit_s: stop when it is over, after the round under way; cells not reached are left out, and the others
            may have fewer repeats. At least one round is run.
        on_progress: called after each visited cell with visits done and visits in all.

    Returns:
        One point for each cell and level, in grid order.

    Raises:
        ConfigError: a number of repeats, calls, sweeps or seconds that is not allowed.
        ProfileError: no cell or no level.
    """
    _check_numbers(repeats, warmup, sweeps, lead, burst, time_limit_s)
    if not grid or not workload.levels:
        msg = f"{len(grid)} shapes and {len(workload.levels)} levels to measure; there must be one of each at least"
        raise ProfileError(msg)
    deadline = math.inf if time_limit_s is None else clock() + time_limit_s * 1e9
    samples: dict[tuple[GridCell, str], list[float]] = {}
    visits = [(cell, share) for share in _shares(repeats, min(sweeps, repeats)) for cell in grid]
    turn = 0
    for done, (cell, share) in enumerate(visits, start=1):
        if samples and clock() >= deadline:
            break
        calls = [(name, _prepare(workload, cell, name)) for name, _ in workload.levels]
        _warm_up(calls, warmup)
        for first in range(0, share, burst):
            if samples and clock() >= deadline:
                break
            for name, call in _rotated(calls, turn):
                _warm_up([(name, call)], lead)
                timed = [_time_ms(call, clock) for _ in range(min(burst, share - first))]
                samples.setdefault((cell, name), []).extend(timed)
            turn += 1
        if on_progress is not None:
            on_progress(done, len(visits))
    shapes = [(cell, level) for cell in grid for level in workload.levels if (cell, level[0]) in samples]
    return [_point(cell, level, samples[cell, level[0]]) for cell, level in shapes]


def _check_numbers(repeats: int, warmup: int, sweeps: int, lead: int, burst: int, time_limit_s: float | None) -> None:
    if min(repeats, sweeps, burst) < 1 or min(warmup, lead) < 0:
        given = f"repeats {repeats}, sweeps {sweeps}, burst {burst}, warmup {warmup}, lead {lead}"
        msg = f"{given}; the first three start at 1, the others at 0"
        raise ConfigError(msg)
    if time_limit_s is not None and not (math.isfinite(time_limit_s) and time_limit_s > 0):
        msg = f"time limit is {time_limit_s} s; give a positive, finite number of seconds, or none"
        raise ConfigError(msg)


def _shares(repeats: int, sweeps: int) -> list[int]:
    return [repeats // sweeps + (i < repeats % sweeps) for i in range(sweeps)]


def _prepare(workload: Workload, cell: GridCell, level: str) -> Call:
    if cell.phase == "prefill":
        return workload.prefill_call(level, cell.batch, cell.new_tokens)
    if cell.phase == "decode":
        return workload.decode_call(level, cell.batch, cell.kv_tokens)
    return workload.forward_call(level, cell.batch)


def _warm_up(calls: Sequence[tuple[str, Call]], rounds: int) -> None:
    for _ in range(rounds):
        for _, call in calls:
            call()


def _rotated(calls: Sequence[tuple[str, Call]], turn: int) -> Sequence[tuple[str, Call]]:
    start = turn % len(calls)
    return [*calls[start:], *calls[:start]]


def _time_ms(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return (clock() - start) / 1e6


def _point(cell: GridCell, level: tuple[str, int], samples_ms: list[float]) -> LatencyPoint:
    return LatencyPoint(
        level=level[0],
        depth=level[1],
        phase=cell.phase,
        batch=cell.batch,
        new_tokens=cell.new_tokens,
        kv_tokens=cell.kv_tokens,
        summary=DistributionSummary.of(samples_ms),
    )

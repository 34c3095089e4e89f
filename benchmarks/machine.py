"""How busy this machine is, and how fast it reads memory."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_STAT = Path("/proc/stat")
_LOOK_S = 0.3
_BUSY_SHARE = 0.1


def wait_until_idle(at_most_s: float) -> bool:
    """Wait until hardly anything runs; whether that came about."""
    ends = time.perf_counter() + at_most_s
    while True:
        before = _ticks()
        time.sleep(_LOOK_S)
        busy, every = (after - earlier for after, earlier in zip(_ticks(), before, strict=True))
        if busy <= _BUSY_SHARE * every:
            return True
        if time.perf_counter() > ends:
            return False


def _ticks() -> tuple[int, int]:
    """Of all cores since the machine started: busy, and all."""
    ticks = [int(number) for number in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def read_gb_per_s(threads: int, num_bytes: int = 2**30, times: int = 3) -> float:
    """Bandwidth right now, the best of some: each thread sums its part of an array that no cache holds."""
    parts = np.array_split(np.ones(num_bytes // 8, np.int64), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(times):
            started = time.perf_counter()
            list(pool.map(np.sum, parts))
            seconds.append(time.perf_counter() - started)
    return num_bytes / min(seconds) / 1e9

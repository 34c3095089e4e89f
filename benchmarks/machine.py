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


class ReadProbe:
    """Sums an array that no cache holds, each thread a part of its own."""

    def __init__(self, threads: int, num_bytes: int = 2**30) -> None:
        self._parts = np.array_split(np.ones(num_bytes // 8, np.int64), threads)
        self._num_bytes = num_bytes

    def gb_per_s(self) -> float:
        """Bandwidth right now, the best of three."""
        with ThreadPoolExecutor(len(self._parts)) as pool:
            return self._num_bytes / min(self._seconds(pool) for _ in range(3)) / 1e9

    def _seconds(self, pool: ThreadPoolExecutor) -> float:
        started = time.perf_counter()
        list(pool.map(np.sum, self._parts))
        return time.perf_counter() - started

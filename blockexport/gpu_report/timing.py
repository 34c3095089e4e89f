"""Times on the GPU: device events, warm, medians, outputs poisoned before and inputs changed for each run."""

from collections.abc import Callable
from statistics import median

import torch

_WARM_UP = 10
_COPY_BYTES = 1 << 30


def median_ms(run: Callable[[], object], prepare: Callable[[int], object], repeats: int = 50) -> float:
    """Median of what the device takes for a run.

    Args:
        run: queues the work.
        prepare: told the number of the run, outside of what is timed: gives it other inputs and spoils its output.
        repeats: runs that count.
    """
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times: list[float] = []
    for index in range(_WARM_UP + repeats):
        prepare(index)
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times[_WARM_UP:])


def copy_bytes_per_s() -> float:
    """Bytes read and written each second by a copy from one buffer to another of a gibibyte."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    milliseconds = median_ms(lambda: target.copy_(source), lambda _: None)
    return 2 * _COPY_BYTES / (milliseconds / 1e3)

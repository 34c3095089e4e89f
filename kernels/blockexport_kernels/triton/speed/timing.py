"""Times of a GPU: its own clock, captured graphs, inputs that no cache holds, outputs that are poisoned before."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from blockexport_kernels.triton.checks.rounding import rounding

OURS = "ours"
_COPY = "copy"
_COPY_BYTES = 2**29
# Inputs are four times as large as the last cache, so that the next turn finds none of them there.
_CACHES = 4
_MOST_COPIES = 512
_WARM_RUNS = 3
# The GPU waits for so long before a timed run, while the processor hands it over whole.
_HEAD_START_CYCLES = 2_000_000
# Every contender rounds its result and a few numbers on the way to the type that it computes in.
_ROUNDINGS = 8


Inputs = TypeVar("Inputs")


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[Inputs]):
    """The same work, done by several.

    Attributes:
        name: says the shape.
        num_bytes: that have to be read and written, once each.
        make: inputs from a seed; equal for equal seeds.
        contenders: by name, each gives the result for inputs; ours is one of them.
    """

    name: str
    num_bytes: int
    make: Callable[[int], Inputs]
    contenders: Mapping[str, Callable[[Inputs], Tensor]]


@dataclass(slots=True, eq=False)
class _Captured:
    """A pass over all inputs, as a graph."""

    graph: torch.cuda.CUDAGraph
    outputs: list[Tensor]
    us: list[float] = field(default_factory=list)


def differences(work: Work[Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Distance of each result from ours as a share of its length, and why those that did not run did not."""
    ours = work.contenders[OURS](work.make(0)).double()
    found, not_run = {OURS: 0.0}, {}
    for name, run in work.contenders.items():
        try:
            theirs = run(work.make(0)).double()
            found[name] = float((theirs - ours).norm() / theirs.norm())
        except Exception as error:  # noqa: BLE001  (a library that refuses a shape is a finding, whatever it raises)
            not_run[name] = _first_line(error)
    return found, not_run


def allowed_difference(dtype: torch.dtype) -> float:
    """How far two results in a type may be apart."""
    return _ROUNDINGS * rounding(dtype)


def measure(work: Work[Any], device: torch.device, rounds: int) -> dict[str, Any]:
    """Time every contender in turn, round after round, and beside them a copy that takes all of the memory's bandwidth.

    Returns:
        `us`, `share_of_copy` and `ratio_to_ours` by contender, with medians and ranges; `fastest` of the libraries.
    """
    difference, not_run = differences(work)
    copies = _num_copies(work.num_bytes, device)
    inputs = [work.make(seed) for seed in range(copies)]
    captured = {}
    for name in difference:
        try:
            captured[name] = _capture(work.contenders[name], inputs)
        except Exception as error:  # noqa: BLE001  (what cannot be captured is a finding too)
            not_run[name] = _first_line(error)
    captured[_COPY] = _capture(_copy(device), [None])
    names = list(captured)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            us = _time_once(captured[name])
            if number:  # the first round warms up
                captured[name].us.append(us / len(captured[name].outputs))
    copy_bytes_per_us = [2 * _COPY_BYTES / us for us in captured.pop(_COPY).us]
    row = _row(work, {name: entry.us for name, entry in captured.items()}, copy_bytes_per_us)
    return {**row, "num_copies": copies, "difference": difference, "not_run": not_run}


def _num_copies(num_bytes: int, device: torch.device) -> int:
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(-(-_CACHES * cache // num_bytes), 2), _MOST_COPIES)


def _copy(device: torch.device) -> Callable[[None], Tensor]:
    source, target = (torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda _: target.copy_(source)


def _capture(run: Callable[[Any], Tensor], inputs: list[Any]) -> _Captured:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_RUNS):
            run(inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [run(one) for one in inputs]
    return _Captured(graph, outputs)


def _time_once(captured: _Captured) -> float:
    """Microseconds of one pass.

    Raises:
        RuntimeError: an output was not written.
    """
    for output in captured.outputs:
        output.fill_(float("nan") if output.is_floating_point() else 1)
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(_HEAD_START_CYCLES)  # noqa: SLF001  (torch has no public way to hold the GPU back)
    started.record()
    captured.graph.replay()
    ended.record()
    ended.synchronize()
    if any(output.isnan().any() for output in captured.outputs):
        msg = "an output holds what it was poisoned with; the time is that of something else"
        raise RuntimeError(msg)
    return 1e3 * float(started.elapsed_time(ended))


def _row(work: Work[Any], us: dict[str, list[float]], copy_bytes_per_us: list[float]) -> dict[str, Any]:
    libraries = [name for name in us if name != OURS]
    ours = us[OURS]
    return {
        "name": work.name,
        "num_bytes": work.num_bytes,
        "copy_gb_s": _spread(rate / 1e3 for rate in copy_bytes_per_us),
        "us": {name: _spread(times) for name, times in us.items()},
        "share_of_copy": {
            name: _spread(work.num_bytes / t / rate for t, rate in zip(times, copy_bytes_per_us, strict=True))
            for name, times in us.items()
        },
        "ratio_to_ours": {
            name: _spread(theirs / own for theirs, own in zip(us[name], ours, strict=True)) for name in libraries
        },
        "fastest": min(libraries, key=lambda name: median(us[name]), default=None),
    }


def _spread(samples: Iterable[float]) -> dict[str, float]:
    numbers = list(samples)
    return {"median": median(numbers), "min": min(numbers), "max": max(numbers)}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"

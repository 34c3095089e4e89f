"""Are the kernels right and fast on a GPU? One result for each question, for whoever gathers a report."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from blockexport_kernels.triton import speed
from blockexport_kernels.triton.checks import decode_attention, dequant_gemv, kv_backfill, residual_rmsnorm
from blockexport_kernels.triton.checks.rounding import Outcome
from blockexport_kernels.triton.registration import INTERPRETED
from blockexport_kernels.triton.speed.timing import Work, allowed_difference, measure

Result = dict[str, Any]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def run_checks(device: torch.device, *, rounds: int = 20) -> list[Result]:
    """All results; see `iterate_checks`."""
    return list(iterate_checks(device, rounds=rounds))


def iterate_checks(device: torch.device, *, rounds: int = 20) -> Iterator[Result]:
    """Each kernel's correctness, then each kernel's speed, one at a time.

    Args:
        device: a GPU; on a CPU kernels are checked if Triton interprets, and never timed.
        rounds: how often each contender is timed.

    Yields:
        `id`, `status` (`pass`, `fail` or `not_run`), `why` and `metrics`. A kernel that is slower than a library's form
        passes, and `metrics["earned"]` is false: it is right, and not to be used.
    """
    on_gpu = device.type == "cuda"
    for name, check in _NUMERICS.items():
        question = partial(_numerics, check, device)
        yield _guarded(f"triton.{name}.numerics", question if on_gpu or INTERPRETED else None)
    for name, works in speed.WORKS.items():
        yield _guarded(f"triton.{name}.speed", partial(_speed, works, device, rounds) if on_gpu else None)


def _guarded(identity: str, question: Callable[[], Result] | None) -> Result:
    if question is None:
        return {"id": identity, "status": "not_run", "why": "no CUDA device", "metrics": {}}
    try:
        return {"id": identity, **question()}
    except Exception as error:  # noqa: BLE001  (one kernel that breaks does not keep the others from being asked)
        return {"id": identity, "status": "fail", "why": f"{type(error).__name__}: {error}", "metrics": {}}


def _numerics(check: Callable[[torch.dtype, torch.device], Outcome], device: torch.device) -> Result:
    outcomes = {str(dtype).removeprefix("torch."): check(dtype, device) for dtype in _DTYPES}
    wrong = [
        f"{name}: {outcome.used:.2f} of the allowed error; {outcome.stray}"
        for name, outcome in outcomes.items()
        if not outcome.passed
    ]
    metrics = {name: {"used": outcome.used, "error": outcome.error} for name, outcome in outcomes.items()}
    return {"status": "fail" if wrong else "pass", "why": "; ".join(wrong), "metrics": metrics}


def _speed(works: Callable[[torch.device], list[Work[Any]]], device: torch.device, rounds: int) -> Result:
    rows = [measure(work, device, rounds) for work in works(device)]
    apart = [
        f"{row['name']}: {name} differs by {share:.1e}"
        for row in rows
        for name, share in row["difference"].items()
        if not share <= allowed_difference(torch.bfloat16)
    ]
    slower = [f"{row['name']}: not always faster than {row['fastest']}" for row in rows if not _earned(row)]
    metrics = {"earned": not slower, "rows": rows}
    return {"status": "fail" if apart else "pass", "why": "; ".join(apart or slower), "metrics": metrics}


def _earned(row: Result) -> bool:
    """Whether ours was faster than every library's form in every round; not by being alone."""
    libraries = row["ratio_to_ours"]
    return bool(libraries) and all(ratio["min"] > 1 for ratio in libraries.values())


_NUMERICS: dict[str, Callable[[torch.dtype, torch.device], Outcome]] = {
    "decode_attention": lambda dtype, device: decode_attention.check(
        decode_attention.Case(
            lengths=(300, 0, 1, 77),
            holes=(((10, 250),), (), (), ((0, 5), (70, 76))),
            head_dim=128,
            kv_heads=1,
            dtype=dtype,
        ),
        device,
    ),
    "residual_rmsnorm": lambda dtype, device: residual_rmsnorm.check(
        residual_rmsnorm.Case(9, 3584, dtype=dtype), device
    ),
    "kv_backfill": lambda dtype, device: kv_backfill.check(
        kv_backfill.Case((0, 0, 1), (5, 0, 70), hidden=200, kv_heads=1, head_dim=128, bare=(1,), dtype=dtype), device
    ),
    "dequant_gemv": lambda dtype, device: dequant_gemv.check(
        dequant_gemv.Case(101, 28, 32, has_bias=True, dtype=dtype), device
    ),
}

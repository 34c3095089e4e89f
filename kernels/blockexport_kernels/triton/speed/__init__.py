"""Are the kernels faster than the best that torch has for the same work? One file a kernel; `timing` takes the time."""

from collections.abc import Callable
from typing import Any

import torch

from blockexport_kernels.triton.speed import decode_attention, dequant_gemv, kv_backfill, residual_rmsnorm
from blockexport_kernels.triton.speed.timing import Work

WORKS: dict[str, Callable[[torch.device], list[Work[Any]]]] = {
    "decode_attention": decode_attention.works,
    "residual_rmsnorm": residual_rmsnorm.works,
    "kv_backfill": kv_backfill.works,
    "dequant_gemv": dequant_gemv.works,
}

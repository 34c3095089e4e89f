"""Every contender of the benchmark that runs on a CPU, against the interpreted kernel. A process of its own.

Prints, as JSON, of each work how far each contender is from ours, in lengths, and why others did not run.
"""

import json
import sys

import torch

from blockexport_kernels.triton.checks import decode_attention as attention
from blockexport_kernels.triton.checks import dequant_gemv as product
from blockexport_kernels.triton.checks import kv_backfill as backfill
from blockexport_kernels.triton.report import run_checks
from blockexport_kernels.triton.speed import decode_attention, dequant_gemv, kv_backfill, residual_rmsnorm
from blockexport_kernels.triton.speed.timing import differences

CPU = torch.device("cpu")
BF16 = torch.bfloat16


def main() -> None:
    """One small shape of each kernel, and what a report says."""
    torch.compiler.set_stance("force_eager")  # no test of the compiler
    skipped = backfill.Case((0, 0, 1), (5,), hidden=64, kv_heads=2, head_dim=32, dtype=BF16)
    works = {
        "decode_attention": decode_attention.work(attention.Case((70, 70)), CPU, kv_heads=2, head_dim=64),
        "hole": decode_attention.work(attention.Case((70,), (((9, 30),),)), CPU, kv_heads=2, head_dim=64),
        "residual_rmsnorm": residual_rmsnorm.work(3, 64, CPU),
        "kv_backfill": kv_backfill.work(skipped, CPU),
        "dequant_gemv": dequant_gemv.work(product.Case(16, 4, dtype=BF16), CPU),
    }
    apart = {name: differences(work) for name, work in works.items()}
    sys.stdout.write(json.dumps({"apart": apart, "report": run_checks(CPU)}))


if __name__ == "__main__":
    main()

"""Runs every operator in the middle of a compiled graph, interpreted. A process of its own.

Prints, as JSON, whether each gives and writes the same bits as without a compiler.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blockexport_kernels.triton.checks import decode_attention as attention_check
from blockexport_kernels.triton.checks import dequant_gemv as gemv_check
from blockexport_kernels.triton.checks import kv_backfill as backfill_check
from blockexport_kernels.triton.checks.residual_rmsnorm import EPSILON
from blockexport_kernels.triton.checks.rounding import same_bits
from blockexport_kernels.triton.decode_attention import decode_attention
from blockexport_kernels.triton.dequant_gemv import dequant_gemv
from blockexport_kernels.triton.kv_backfill import kv_backfill
from blockexport_kernels.triton.residual_rmsnorm import residual_rmsnorm

CPU = torch.device("cpu")

Case = tuple[Callable[[], Any], list[Tensor]]


def attention() -> Case:
    made = attention_check.make(attention_check.Case(lengths=(9, 0, 4), holes=(((1, 3),), (), ())), CPU)

    def step() -> Tensor:
        return (
            decode_attention(made.query * 2, made.key, made.value, made.keys, made.values, made.slots, made.holes) + 1
        )

    return step, [made.keys, made.values]


def norm() -> Case:
    residual, branch, weight = torch.arange(24.0).view(3, 8), torch.ones(3, 8), torch.arange(8.0)
    return lambda: residual_rmsnorm(residual, branch * 2, weight, EPSILON) + 1, [residual]


def backfill() -> Case:
    made = backfill_check.make(backfill_check.Case(spans=(0, 1), tokens=(2, 3), hidden=16, head_dim=8), CPU)
    table = made.table

    def fill() -> None:
        kv_backfill(made.hidden * 2, made.spans, table, made.cos_sin, made.rows, made.slots, EPSILON)

    return fill, [made.cache]


def product() -> Case:
    made = gemv_check.make(gemv_check.Case(5, 3), CPU)
    return lambda: dequant_gemv(made.inputs * 2, made.codes, made.scales, made.zeros, 4) + 1, []


def same(make: Callable[[], Case], backend: str) -> bool:
    """Whether a function and what torch.compile makes of it, without a break, leave the same bits."""
    torch.compiler.reset()
    (plain, plainly), (function, compiled) = make(), make()
    out = torch.compile(function, fullgraph=True, backend=backend)()
    expected = plain()
    pairs = list(zip(plainly, compiled, strict=True)) + ([] if out is None else [(expected, out)])
    return all(same_bits(*pair) for pair in pairs)


def main() -> None:
    """All four, with a compiler that takes graphs as they are and one that makes them functional."""
    cases = {"decode_attention": attention, "residual_rmsnorm": norm, "kv_backfill": backfill, "dequant_gemv": product}
    backends = ("eager", "aot_eager")
    sys.stdout.write(json.dumps({name: [same(make, b) for b in backends] for name, make in cases.items()}))


if __name__ == "__main__":
    main()

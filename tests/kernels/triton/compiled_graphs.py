"""Runs every operator in the middle of a compiled graph and under autocast, interpreted. A process of its own.

Prints, as JSON, whether each gives and writes the same bits as when it is called alone.
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

Wrap = Callable[[Callable[[], Any]], Callable[[], Any]]
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


def compiled(backend: str) -> Wrap:
    """Compile without a break."""
    torch.compiler.reset()
    return lambda function: torch.compile(function, fullgraph=True, backend=backend)


def autocast(function: Callable[[], Any]) -> Callable[[], Any]:
    """Mixed precision is no business of the operators: nothing they are given is cast."""

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function()

    return run


def same(make: Callable[[], Case], wrap: Wrap) -> bool:
    """Whether a function and what is made of it leave the same bits."""
    (plain, plainly), (function, written) = make(), make()
    out, expected = wrap(function)(), plain()
    pairs = list(zip(plainly, written, strict=True)) + ([] if out is None else [(expected, out)])
    return all(same_bits(*pair) for pair in pairs)


def main() -> None:
    """All four: by a compiler that takes graphs as they are, by one that makes them functional, under autocast."""
    cases = {"decode_attention": attention, "residual_rmsnorm": norm, "kv_backfill": backfill, "dequant_gemv": product}
    wraps = {"eager": compiled("eager"), "aot_eager": compiled("aot_eager"), "autocast": autocast}
    out = {f"{name}, {how}": same(make, wrap) for name, make in cases.items() for how, wrap in wraps.items()}
    sys.stdout.write(json.dumps(out))


if __name__ == "__main__":
    main()

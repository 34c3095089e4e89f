"""Traces every operator as compilers do, for a GPU that need not be there. A process of its own.

Prints, as JSON, of each operator which launches a compiler sees and which inputs it knows to be written.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from blockexport_kernels.triton.checks import decode_attention as attention_check
from blockexport_kernels.triton.checks import dequant_gemv as gemv_check
from blockexport_kernels.triton.checks import kv_backfill as backfill_check
from blockexport_kernels.triton.checks.residual_rmsnorm import EPSILON
from blockexport_kernels.triton.decode_attention import decode_attention
from blockexport_kernels.triton.dequant_gemv import dequant_gemv
from blockexport_kernels.triton.kv_backfill import kv_backfill
from blockexport_kernels.triton.residual_rmsnorm import residual_rmsnorm


class _Driver:
    """What torch asks Triton's driver for when it looks which arguments a kernel writes to."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class _Calls(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # A tensor made here, for the operator to be in the middle of a graph.
        out = self.function(tensors[0] * 2, *tensors[1:])
        return () if out is None else (out + 1,)


def trace(function: Callable[..., Any], *tensors: Tensor) -> dict[str, list[str]]:
    """Kernels that a compiler sees when an operator is called on these, and which inputs it knows to be written."""
    with FakeTensorMode():
        fakes = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in tensors]
        graph, signature = aot_export_module(_Calls(function), fakes, trace_joint=False)
    calls = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    side_table = torch._higher_order_ops.triton_kernel_wrap.kernel_side_table
    names = [side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__ for node in calls]
    return {"kernels": names, "written": sorted(signature.user_inputs_to_mutate.values())}


def main() -> None:
    """All four."""
    triton.runtime.driver.set_active(_Driver())
    cpu = torch.device("cpu")
    attend = attention_check.make(attention_check.Case(lengths=(9, 4), holes=(((1, 3),), ())), cpu)
    caches = (attend.keys.contiguous(), attend.values.contiguous())
    product = gemv_check.make(gemv_check.Case(13, 9), cpu)
    skipped = backfill_check.make(backfill_check.Case(spans=(0, 1), tokens=(2,)), cpu)
    table = skipped.table

    def backfill(
        hidden: Tensor, cache: Tensor, spans: Tensor, rows: Tensor, slots: Tensor, *table_tensors: Tensor
    ) -> None:
        matrices, vectors, weight_offsets, cache_offsets = table_tensors
        places = (cache, cache_offsets, table.cache_strides, table.kv_heads, table.head_dim, table.hidden)
        kv_backfill(hidden, spans, type(table)(matrices, vectors, weight_offsets, *places), None, rows, slots, EPSILON)

    parts = (table.matrices, table.vectors, table.weight_offsets, table.cache_offsets)
    out = {
        "decode_attention": trace(
            lambda q, *rest: decode_attention(q, *rest, num_splits=2),
            *(t.contiguous() for t in (attend.query, attend.key, attend.value)),
            *caches,
            attend.slots,
            attend.holes,
        ),
        "residual_rmsnorm": trace(
            lambda branch, residual, weight: residual_rmsnorm(residual, branch, weight, EPSILON),
            *(torch.zeros(s) for s in ((3, 8), (3, 8), (8,))),
        ),
        "kv_backfill": trace(backfill, skipped.hidden, table.cache, skipped.spans, skipped.rows, skipped.slots, *parts),
        "dequant_gemv": trace(
            lambda *tensors: dequant_gemv(*tensors, 4), product.inputs, product.codes, product.scales, product.zeros
        ),
    }
    sys.stdout.write(json.dumps(out))


if __name__ == "__main__":
    main()

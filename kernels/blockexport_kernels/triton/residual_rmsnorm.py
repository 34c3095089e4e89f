"""Residual add and RMSNorm in one pass over the hidden state: a row is read once and stays in registers.

What it is for and what it computes: `reference.residual_rmsnorm`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockexport_kernels.triton.errors import KernelInputError
from blockexport_kernels.triton.registration import register, require_device, wrap_triton

# A thread then holds at most 32 numbers of a row.
_COLUMNS_PER_WARP = 1024
_MOST_WARPS = 16


@triton.jit
def _residual_rmsnorm_kernel(
    residual_ptr,
    branch_ptr,
    weight_ptr,
    out_ptr,
    epsilon,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    columns = tl.arange(0, BLOCK)
    there = columns < HIDDEN
    total = tl.load(residual_ptr + row + columns, mask=there, other=0.0).to(tl.float32)
    if branch_ptr is not None:
        total += tl.load(branch_ptr + row + columns, mask=there, other=0.0).to(tl.float32)
        stored = total.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row + columns, stored, mask=there)
        # The next block reads what was stored; the norm sees the same.
        total = stored.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(total * total, axis=0) / HIDDEN + epsilon)
    weight = tl.load(weight_ptr + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + columns, (total * inverse * weight).to(out_ptr.dtype.element_ty), mask=there)


def _fake(residual: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(residual)


@register("residual_rmsnorm", mutates=("residual",), fake=_fake)
def _operator(residual: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    out = torch.empty_like(residual)
    hidden = residual.shape[-1]
    block = triton.next_power_of_2(hidden)
    num_warps = min(max(block // _COLUMNS_PER_WARP, 1), _MOST_WARPS)
    if out.numel() > 0:
        wrap_triton(_residual_rmsnorm_kernel)[(residual.numel() // hidden,)](
            residual, branch, weight, out, epsilon, HIDDEN=hidden, BLOCK=block, num_warps=num_warps
        )
    return out


def residual_rmsnorm(residual: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    """Add `branch` to `residual` in place and return the normalised sum; see `reference.residual_rmsnorm`.

    Args:
        residual: (..., hidden) contiguous, fp32, bf16 or fp16.
        branch: like residual, or None.
        weight: (hidden,), of any of these types: bundles keep norms in fp32.
        epsilon: of the norm.

    Raises:
        KernelInputError: shapes, types or strides differ from these.
        KernelUnavailableError: the tensors are not on a GPU.
    """
    if weight.shape != residual.shape[-1:] or not (residual.is_contiguous() and weight.is_contiguous()):
        msg = f"a residual of {tuple(residual.shape)} needs to be contiguous, with a weight of its last dimension; "
        raise KernelInputError(msg + f"the weight is {tuple(weight.shape)}")
    if branch is not None and (branch.shape, branch.dtype) != (residual.shape, residual.dtype):
        msg = f"the branch is {tuple(branch.shape)} {branch.dtype}; like the residual it has to be "
        raise KernelInputError(msg + f"{tuple(residual.shape)} {residual.dtype}")
    require_device(residual)
    out: Tensor = _operator(residual, None if branch is None else branch.contiguous(), weight, epsilon)
    return out

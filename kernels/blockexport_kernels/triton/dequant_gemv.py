"""Products of few rows of activations with a matrix of int4 or int8 codes, in the layout of a bundle.

A decode step reads each weight once, so its time is that of reading codes. A program reads whole rows of a few outputs,
widens codes in registers and adds up in fp32; nothing is unpacked to memory and no two programs share a sum, so results
are the same on every run. Layout and arithmetic: `reference.dequant_gemv`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockexport_kernels.triton.errors import KernelInputError
from blockexport_kernels.triton.registration import register, require_device, wrap_triton

_BLOCK_OUTPUTS = 4
_BYTES_AT_A_TIME = 512
_MOST_ROWS = 16


@triton.jit
def _dequant_gemv_kernel(
    inputs_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    out_ptr,
    num_outputs,
    NUM_GROUPS: tl.constexpr,
    GROUP_BYTES: tl.constexpr,
    ZERO_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    CODES_PER_BYTE: tl.constexpr = 8 // BITS
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_output = outputs < num_outputs
    # Large vocabularies have more codes than 32 bits count.
    wide = outputs.to(tl.int64)[:, None]
    row = tl.program_id(1).to(tl.int64)
    places = tl.arange(0, GROUP_BYTES)
    total = tl.zeros((BLOCK_OUTPUTS,), tl.float32)
    for start in range(0, NUM_GROUPS, BLOCK_GROUPS):
        groups = start + tl.arange(0, BLOCK_GROUPS)
        is_group = groups < NUM_GROUPS
        there = is_output[:, None] & is_group[None, :]
        group = wide * NUM_GROUPS + groups[None, :]
        code = codes_ptr + group[:, :, None] * GROUP_BYTES + places[None, None, :]
        # GPUs turn 32-bit integers into floats several times faster than shorter ones.
        codes = tl.load(code, mask=there[:, :, None], other=0).to(tl.int32)
        scales = tl.load(scales_ptr + group, mask=there, other=0.0).to(tl.float32)
        if zeros_ptr is None:
            zeros = tl.full((BLOCK_OUTPUTS, BLOCK_GROUPS), 1 << (BITS - 1), tl.float32)
        else:
            packed = tl.load(zeros_ptr + wide * ZERO_BYTES + groups[None, :] // CODES_PER_BYTE, mask=there, other=0).to(
                tl.int32
            )
            if BITS == 4:
                packed = (packed >> (4 * (groups[None, :] % 2))) & 15
            zeros = packed.to(tl.float32)
        inputs = inputs_ptr + (row * NUM_GROUPS + groups[:, None]) * (GROUP_BYTES * CODES_PER_BYTE)
        if BITS == 4:
            # Both inputs of a byte lie side by side.
            pairs = inputs[:, :, None] + places[None, :, None] * 2 + tl.arange(0, 2)[None, None, :]
            first, second = tl.split(tl.load(pairs, mask=is_group[:, None, None], other=0.0).to(tl.float32))
            products = ((codes & 15).to(tl.float32) - zeros[:, :, None]) * first[None, :, :]
            products += ((codes >> 4).to(tl.float32) - zeros[:, :, None]) * second[None, :, :]
        else:
            first = tl.load(inputs + places[None, :], mask=is_group[:, None], other=0.0).to(tl.float32)
            products = (codes.to(tl.float32) - zeros[:, :, None]) * first[None, :, :]
        total += tl.sum(tl.sum(products, axis=2) * scales, axis=1)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * num_outputs + outputs, total.to(out_ptr.dtype.element_ty), mask=is_output)


def _fake(inputs: Tensor, codes: Tensor, *_rest: object) -> Tensor:
    return inputs.new_empty((inputs.shape[0], codes.shape[0]))


@register("dequant_gemv", fake=_fake)
def _operator(
    inputs: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, bias: Tensor | None
) -> Tensor:
    num_outputs, num_groups, group_bytes = codes.shape
    out = inputs.new_empty((inputs.shape[0], num_outputs))
    if out.numel() == 0:
        return out
    grid = (triton.cdiv(num_outputs, _BLOCK_OUTPUTS), inputs.shape[0])
    wrap_triton(_dequant_gemv_kernel)[grid](
        inputs,
        codes,
        scales,
        zeros,
        bias,
        out,
        num_outputs,
        NUM_GROUPS=num_groups,
        GROUP_BYTES=group_bytes,
        ZERO_BYTES=0 if zeros is None else zeros.shape[1],
        BITS=bits,
        BLOCK_OUTPUTS=_BLOCK_OUTPUTS,
        BLOCK_GROUPS=min(max(_BYTES_AT_A_TIME // group_bytes, 1), triton.next_power_of_2(num_groups)),
        num_warps=4,
    )
    return out


def dequant_gemv(
    inputs: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, bias: Tensor | None = None
) -> Tensor:
    """Multiply up to 16 rows by a matrix of codes, each row reading all codes; see `reference.dequant_gemv`.

    Args:
        inputs: (rows, inputs) in fp32, bf16 or fp16.
        codes: (outputs, groups, group_size * bits / 8) uint8; group_size is 16, 32, 64, 128 or 256.
        scales: (outputs, groups)
        zeros: (outputs, ceil(groups * bits / 8)) uint8, or None.
        bits: 4 or 8.
        bias: (outputs,) or None.

    Raises:
        KernelInputError: shapes or types differ from these.
        KernelUnavailableError: the tensors are not on a GPU.
    """
    _check(inputs, codes, scales, zeros, bits, bias)
    given = [None if t is None else t.contiguous() for t in (inputs, codes, scales, zeros, bias)]
    require_device(inputs)
    out: Tensor = _operator(*given[:4], bits, given[4])
    return out


def _check(inputs: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, bias: Tensor | None) -> None:
    if bits not in {4, 8}:
        msg = f"codes of {bits} bits cannot be read; 4 and 8 are"
        raise KernelInputError(msg)
    num_outputs, num_groups, group_bytes = codes.shape
    if group_bytes * 8 // bits not in {16, 32, 64, 128, 256}:
        msg = f"groups of {group_bytes * 8 // bits} inputs share a scale; 16, 32, 64, 128 or 256 are allowed"
        raise KernelInputError(msg)
    wanted = {
        "inputs": (inputs, (inputs.shape[0], num_groups * group_bytes * 8 // bits)),
        "scales": (scales, (num_outputs, num_groups)),
        "zeros": (zeros, (num_outputs, -(-num_groups * bits // 8))),
        "bias": (bias, (num_outputs,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            msg = f"{name} are {tuple(tensor.shape)}; for codes of {tuple(codes.shape)} they have to be {shape}"
            raise KernelInputError(msg)
    if inputs.shape[0] > _MOST_ROWS:
        msg = f"{inputs.shape[0]} rows are no matrix-vector product; give at most {_MOST_ROWS}, or dequantise"
        raise KernelInputError(msg)
    if any(t is not None and t.dtype != torch.uint8 for t in (codes, zeros)):
        msg = f"codes are {codes.dtype}; codes and zeros have to be uint8"
        raise KernelInputError(msg)

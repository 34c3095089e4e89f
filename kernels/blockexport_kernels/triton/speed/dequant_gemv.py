"""Is `dequant_gemv` faster than the same product in bf16 by cuBLAS, and than torch's own product with int4 weights?"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.checks.dequant_gemv import Case
from blockexport_kernels.triton.checks.dequant_gemv import Inputs as Tensors
from blockexport_kernels.triton.checks.dequant_gemv import make as make_tensors
from blockexport_kernels.triton.dequant_gemv import dequant_gemv
from blockexport_kernels.triton.speed.timing import OURS, Work

_INNER_TILES = 8


@dataclass(slots=True, eq=False)
class Inputs:
    """A case, its matrix in bf16, and the matrix as torch's int4 product has it; None for 8 bits."""

    made: Tensors
    dense: Tensor
    packed: tuple[Tensor, Tensor] | None


def works(device: torch.device) -> list[Work[Inputs]]:
    """Products of Qwen2-7B, in each form that bundles have."""
    shapes = ((3584, 3584), (18944, 3584), (3584, 18944))
    forms = ((4, 32), (4, 128), (8, 32))
    cases = [
        Case(outputs, inputs // size, size, bits, dtype=torch.bfloat16)
        for bits, size in forms
        for outputs, inputs in shapes
    ]
    return [work(case, device) for case in cases]


def work(case: Case, device: torch.device) -> Work[Inputs]:
    """What has to be read are codes, scales and zero points; cuBLAS reads more, which is the point."""
    group_bytes = case.group_size * case.bits / 8 + 4 + case.bits / 8

    def ours(inputs: Inputs) -> Tensor:
        made = inputs.made
        return dequant_gemv(made.inputs, made.codes, made.scales, made.zeros, case.bits)

    def dense(inputs: Inputs) -> Tensor:
        return linear(inputs.made.inputs, inputs.dense)

    def packed(inputs: Inputs) -> Tensor:
        if inputs.packed is None:
            msg = "torch's product with packed weights takes 4 bits, on a GPU"
            raise NotImplementedError(msg)
        codes, scales_zeros = inputs.packed
        return torch._weight_int4pack_mm(inputs.made.inputs, codes, case.group_size, scales_zeros)  # noqa: SLF001

    shape = f"{case.bits} bits by {case.group_size}, {case.groups * case.group_size} inputs, {case.outputs} outputs"
    contenders = {OURS: ours, "bf16 product": dense, "int4pack": packed}
    num_bytes = int(case.outputs * case.groups * group_bytes)
    return Work(shape, num_bytes, lambda seed: make(replace(case, seed=seed), device), contenders)


def make(case: Case, device: torch.device) -> Inputs:
    """Matrices for the libraries are made from the codes, so all multiply by the same numbers, rounded to bf16."""
    made = make_tensors(case, device)
    dense = reference.dequantise(made.codes, made.scales, made.zeros, case.bits).to(torch.bfloat16)
    packed = _int4pack(made) if case.bits == 4 and device.type == "cuda" else None
    return Inputs(made, dense, packed)


def _int4pack(made: Tensors) -> tuple[Tensor, Tensor]:
    """Torch's layout: the first code of a byte is the high one."""
    flat = made.codes.flatten(1)
    codes = torch._convert_weight_to_int4pack(flat << 4 | flat >> 4, _INNER_TILES)  # noqa: SLF001  (there is no other)
    return codes, scales_and_zeros(made)


def scales_and_zeros(made: Tensors) -> Tensor:
    """(groups, outputs, 2) in bf16, for weights to be (code - 8) * scale + zero."""
    zeros = torch.full_like(made.scales, 8)
    if made.zeros is not None:
        unpacked = torch.stack([made.zeros & 15, made.zeros >> 4], -1).flatten(-2)
        zeros = unpacked[:, : made.scales.shape[1]].to(made.scales.dtype)
    both = torch.stack([made.scales, (8 - zeros) * made.scales], -1)
    return both.to(torch.bfloat16).transpose(0, 1).contiguous()

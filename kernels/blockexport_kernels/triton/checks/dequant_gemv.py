"""Is `dequant_gemv` right?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.checks.rounding import SUM, Outcome, compare, rounding, underflow
from blockexport_kernels.triton.dequant_gemv import dequant_gemv


@dataclass(frozen=True, slots=True)
class Case:
    """A matrix of codes, and rows to multiply with it."""

    outputs: int
    groups: int
    group_size: int = 32
    bits: int = 4
    rows: int = 1
    has_zeros: bool = True
    has_bias: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(slots=True, eq=False)
class Inputs:
    """Tensors of a case."""

    inputs: Tensor
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None


def make(case: Case, device: torch.device) -> Inputs:
    """All bytes are codes: any is as good as another."""
    generator = torch.Generator(device).manual_seed(case.seed)

    def codes(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8)

    inputs = torch.randn((case.rows, case.groups * case.group_size), generator=generator, device=device)
    inputs = inputs.to(case.dtype)
    scales = torch.rand((case.outputs, case.groups), generator=generator, device=device)
    bias = torch.randn(case.outputs, generator=generator, device=device)
    packed = codes(case.outputs, case.groups, case.group_size * case.bits // 8)
    zeros = codes(case.outputs, -(-case.groups * case.bits // 8))
    return Inputs(inputs, packed, scales, zeros if case.has_zeros else None, bias if case.has_bias else None)


def check(case: Case, device: torch.device = torch.device("cpu")) -> Outcome:  # noqa: B008  (devices are immutable)
    """Compare with the product in fp64. Codes less zero points are integers and exact, sums are in fp32."""
    made = make(case, device)
    got = dequant_gemv(made.inputs, made.codes, made.scales, made.zeros, case.bits, made.bias)
    weights = reference.dequantise(made.codes, made.scales.double(), made.zeros, case.bits)
    inputs = made.inputs.double()
    bias = torch.zeros(case.outputs, device=device) if made.bias is None else made.bias
    expected = inputs @ weights.T + bias
    terms = inputs.abs() @ weights.abs().T + bias.abs()
    sums = (inputs.shape[1] + 3) * SUM * terms
    return compare(got, expected, sums + rounding(case.dtype) * expected.abs() + underflow(case.dtype))

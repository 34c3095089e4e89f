"""How far a kernel may be from the same sum in fp64: bounds that follow from number formats (Higham, 2002, chapter 3).

Each check states its bound, term by term, from these: rounding to a type, sums in fp32, and functions that a GPU
approximates. Bounds are worst cases; a kernel that leaves one number out exceeds them in fp32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blockexport_kernels.triton.registration import INTERPRETED

SUM = 2.0**-23
"""Of one addition or product in fp32; tensor cores cut sums off where fp32 would round to nearest."""

FUNCTION = 2.0**-21
"""Of exp2, rsqrt and division: ex2.approx, rsqrt.approx and div.full err by at most 2 units in the last place."""


def rounding(dtype: torch.dtype) -> float:
    """Relative error of a number rounded to a type. Triton's interpreter cuts bf16 off, GPUs round to nearest."""
    eps = torch.finfo(dtype).eps
    return eps if INTERPRETED and dtype == torch.bfloat16 else eps / 2


def underflow(dtype: torch.dtype) -> float:
    """Absolute error of a number too small for the type's full precision."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of comparing one kernel with its reference.

    Attributes:
        used: the largest error as a share of what is allowed there; the kernel is right up to 1.
        error: the largest error.
        largest: the largest number in the fp64 result.
        stray: what else is wrong, such as memory that was to stay as it was; empty if nothing.
    """

    used: float
    error: float
    largest: float
    stray: str = ""

    @property
    def passed(self) -> bool:
        """Whether the kernel is right."""
        return self.used <= 1 and not self.stray


def compare(got: Tensor, expected: Tensor, allowed: Tensor, stray: str = "") -> Outcome:
    """Hold what a kernel gave to fp64 numbers and what it may be off at each; what is no number is infinitely off."""
    if got.numel() == 0:
        return Outcome(0.0, 0.0, 0.0, stray)
    error = (got.double() - expected).abs().nan_to_num(nan=float("inf"))
    used = torch.where(error == 0, 0.0, error / allowed)
    return Outcome(float(used.max()), float(error.max()), float(expected.abs().max()), stray)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a type hold the same bits, numbers or not."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))

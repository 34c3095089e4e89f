"""Is `residual_rmsnorm` right?"""

from dataclasses import dataclass

import torch

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.checks.rounding import FUNCTION, SUM, Outcome, compare, rounding, underflow
from blockexport_kernels.triton.residual_rmsnorm import residual_rmsnorm

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Case:
    """Some tokens; the norm's weight is fp32, as in bundles."""

    tokens: int
    hidden: int
    has_branch: bool = True
    dtype: torch.dtype = torch.float32
    seed: int = 0


def check(case: Case, device: torch.device = torch.device("cpu")) -> Outcome:  # noqa: B008  (devices are immutable)
    """Compare the sum with that in fp64, and the norm with that of the sum as it was stored."""
    generator = torch.Generator(device).manual_seed(case.seed)
    shape = (case.tokens, case.hidden)
    residual, branch = (torch.randn(shape, generator=generator, device=device).to(case.dtype) for _ in range(2))
    weight = torch.randn(case.hidden, generator=generator, device=device)
    total = residual.double() + (branch.double() if case.has_branch else 0)
    got = residual_rmsnorm(residual, branch if case.has_branch else None, weight, EPSILON)
    expected = reference.residual_rmsnorm(residual.double(), None, weight.double(), EPSILON)
    off = compare(residual, total, rounding(case.dtype) * total.abs() + underflow(case.dtype))
    stray = "" if off.used <= 1 else f"the stored sum is off by {off.error:.2e}"
    relative = norm_error(case.hidden) + rounding(case.dtype)
    return compare(got, expected, relative * expected.abs() + underflow(case.dtype), stray)


def norm_error(hidden: int) -> float:
    """Relative error of a normalised number before it is rounded: half that of the squares' sum, and three products."""
    return hidden * SUM / 2 + FUNCTION + 3 * SUM

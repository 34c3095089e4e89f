"""Is `residual_rmsnorm` faster than an addition and torch's rms_norm, compiled?"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from blockexport_kernels.triton.residual_rmsnorm import residual_rmsnorm
from blockexport_kernels.triton.speed.timing import OURS, Work

_EPSILON = 1e-6


@dataclass(slots=True, eq=False)
class Inputs:
    """Tensors of one call; the norm has the type of the rest, which is all that torch's own takes."""

    residual: Tensor
    branch: Tensor
    weight: Tensor


def works(device: torch.device) -> list[Work[Inputs]]:
    """A norm of Qwen2-7B for one token, a batch, and a prompt."""
    return [work(tokens, 3584, device) for tokens in (1, 64, 4096)]


def work(tokens: int, hidden: int, device: torch.device) -> Work[Inputs]:
    """Residual and branch are read, residual and result written."""

    def make(seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        numbers = torch.randn((2 * tokens + 1, hidden), generator=generator, device=device).to(torch.bfloat16)
        return Inputs(numbers[:tokens].clone(), numbers[tokens : 2 * tokens].clone(), numbers[-1].clone())

    def ours(inputs: Inputs) -> Tensor:
        return residual_rmsnorm(inputs.residual, inputs.branch, inputs.weight, _EPSILON)

    def plain(inputs: Inputs) -> Tensor:
        return _add_and_norm(inputs.residual, inputs.branch, inputs.weight)

    fused = torch.compile(_add_and_norm, fullgraph=True, dynamic=False)

    def compiled(inputs: Inputs) -> Tensor:
        return fused(inputs.residual, inputs.branch, inputs.weight)

    contenders = {OURS: ours, "torch": plain, "torch.compile": compiled}
    return Work(f"{tokens} tokens of {hidden}", (4 * tokens + 1) * hidden * 2, make, contenders)


def _add_and_norm(residual: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    residual += branch
    return rms_norm(residual, weight.shape, weight, _EPSILON)

"""Is `kv_backfill` faster than, block by block, a norm, one product for keys and values, and a rotation, compiled?"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from blockexport_kernels.triton.block_table import BlockTable
from blockexport_kernels.triton.checks.kv_backfill import Case
from blockexport_kernels.triton.checks.kv_backfill import Inputs as Tensors
from blockexport_kernels.triton.checks.kv_backfill import make as make_tensors
from blockexport_kernels.triton.checks.residual_rmsnorm import EPSILON
from blockexport_kernels.triton.kv_backfill import kv_backfill
from blockexport_kernels.triton.speed.timing import OURS, Work


@dataclass(slots=True, eq=False)
class Inputs:
    """A case, and what the library form wants made of it: one matrix for keys and values, all in one type."""

    made: Tensors
    table: BlockTable
    filled: Tensor
    norms: list[Tensor]
    matrices: list[Tensor]
    biases: list[Tensor]
    cos_sin: tuple[Tensor, Tensor]


def works(device: torch.device) -> list[Work[Inputs]]:
    """Half of Qwen2-7B's blocks, in two runs, for few tokens, a paragraph, and a page."""
    case = Case((0,) * 7 + (1,) * 7, (), hidden=3584, kv_heads=4, head_dim=128, dtype=torch.bfloat16)
    return [work(replace(case, tokens=(tokens,)), device) for tokens in (8, 128, 1024)]


def work(case: Case, device: torch.device) -> Work[Inputs]:
    """Weights and hidden state are read, keys and values written; slots of the one row are neighbours."""
    outputs, tokens = case.kv_heads * case.head_dim, case.tokens[0]
    numbers = len(case.spans) * 2 * outputs * (case.hidden + tokens) + (max(case.spans) + 1) * tokens * case.hidden

    def ours(inputs: Inputs) -> Tensor:
        made = inputs.made
        kv_backfill(made.hidden, made.spans, inputs.table, made.cos_sin, made.rows, made.slots, EPSILON)
        return inputs.filled

    def form(fill: Callable[..., None]) -> Callable[[Inputs], Tensor]:
        def run(inputs: Inputs) -> Tensor:
            for block, span in enumerate(case.spans):
                weights = (inputs.norms[block], inputs.matrices[block], inputs.biases[block])
                fill(inputs.made.hidden[span, :tokens], *weights, *inputs.cos_sin, *inputs.filled[block])
            return inputs.filled

        return run

    compiled = torch.compile(_fill, fullgraph=True, dynamic=False)
    contenders = {OURS: ours, "torch": form(_fill), "torch.compile": form(compiled)}
    name = f"{len(case.spans)} blocks, {tokens} tokens"
    return Work(name, numbers * case.dtype.itemsize, lambda seed: make(replace(case, seed=seed), device), contenders)


def make(case: Case, device: torch.device) -> Inputs:
    """Keys' and values' weights of a block are neighbours, so one matrix for both is a view."""
    made = make_tensors(case, device)
    shape = (2 * case.kv_heads * case.head_dim, case.hidden)
    biases = [torch.cat([b for b in (w.key_bias, w.value_bias) if b is not None]) for w in made.weights]
    assert made.cos_sin is not None
    cos, sin = (angles[:-1].to(case.dtype) for angles in made.cos_sin)
    return Inputs(
        made,
        made.table,
        made.cache[:, :, 0, :, case.first_slot : case.first_slot + case.tokens[0]],
        norms=[w.norm.to(case.dtype) for w in made.weights],
        matrices=[w.key.as_strided(shape, w.key.stride()) for w in made.weights],
        biases=[bias.to(case.dtype) for bias in biases],
        cos_sin=(cos, sin),
    )


def _fill(
    hidden: Tensor, norm: Tensor, matrix: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
) -> None:
    """One block, all in one type."""
    kv_heads, tokens, head_dim = keys.shape
    normed = rms_norm(hidden, norm.shape, norm, EPSILON)
    both = linear(normed, matrix, bias).view(tokens, 2, kv_heads, head_dim).permute(1, 2, 0, 3)
    first, second = both[0].chunk(2, dim=-1)
    keys.copy_(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))
    values.copy_(both[1])

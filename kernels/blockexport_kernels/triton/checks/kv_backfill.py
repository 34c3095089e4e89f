"""Is `kv_backfill` right?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.block_table import BlockTable, BlockWeights
from blockexport_kernels.triton.checks.residual_rmsnorm import EPSILON, norm_error
from blockexport_kernels.triton.checks.rounding import SUM, Outcome, compare, rounding, same_bits, underflow
from blockexport_kernels.triton.kv_backfill import kv_backfill


@dataclass(frozen=True, slots=True)
class Case:
    """Blocks that were skipped, and tokens that passed them by.

    Attributes:
        spans: of each block, which run of skipped blocks it belongs to.
        tokens: of each row of the cache, how many are filled in, from slot `first_slot` on.
        bare: blocks without biases.
    """

    spans: tuple[int, ...]
    tokens: tuple[int, ...]
    first_slot: int = 3
    hidden: int = 96
    kv_heads: int = 2
    head_dim: int = 64
    bare: tuple[int, ...] = ()
    has_angles: bool = True
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(slots=True, eq=False)
class Inputs:
    """Tensors of a case; the cache holds no numbers yet."""

    hidden: Tensor
    spans: Tensor
    weights: list[BlockWeights]
    cache: Tensor
    cos_sin: tuple[Tensor, Tensor] | None
    rows: Tensor
    slots: Tensor

    @property
    def table(self) -> BlockTable:
        """The blocks, as the kernel takes them."""
        return BlockTable.of(self.weights, [(keys, values) for keys, values in self.cache])


def make(case: Case, device: torch.device) -> Inputs:
    """Matrices in one allocation of the case's type, norms and biases in one of fp32, as bundles have them.

    One token more than is filled in has no slot.
    """
    generator = torch.Generator(device).manual_seed(case.seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    blocks, outputs = len(case.spans), case.kv_heads * case.head_dim
    matrices, vectors = (
        normal(blocks, 2, outputs, case.hidden, dtype=case.dtype),
        normal(blocks, case.hidden + 2 * outputs),
    )
    weights = []
    for block, (matrix, vector) in enumerate(zip(matrices, vectors, strict=True)):
        norm, *biases = vector.split([case.hidden, outputs, outputs])
        weights.append(BlockWeights(norm, *matrix, *([None, None] if block in case.bare else biases)))
    capacity = case.first_slot + max(case.tokens) + 1
    cache_shape = (blocks, 2, len(case.tokens), case.kv_heads, capacity, case.head_dim)
    rows = [row for row, count in enumerate(case.tokens) for _ in range(count)]
    slots = [case.first_slot + index for count in case.tokens for index in range(count)]
    angles = normal(len(rows) + 1, case.head_dim // 2)
    return Inputs(
        hidden=normal(max(case.spans) + 1, len(rows) + 1, case.hidden, dtype=case.dtype),
        spans=torch.tensor(case.spans, dtype=torch.int32, device=device),
        weights=weights,
        cache=torch.full(cache_shape, float("nan"), dtype=case.dtype, device=device),
        cos_sin=(angles.cos(), angles.sin()) if case.has_angles else None,
        rows=torch.tensor([*rows, 0], dtype=torch.int32, device=device),
        slots=torch.tensor([*slots, -1], dtype=torch.int32, device=device),
    )


def check(case: Case, device: torch.device = torch.device("cpu")) -> Outcome:  # noqa: B008  (devices are immutable)
    """Compare every key and value with that in fp64; all other memory is to stay as it was."""
    made = make(case, device)
    untouched = made.cache.clone()
    kv_backfill(made.hidden, made.spans, made.table, made.cos_sin, made.rows, made.slots, EPSILON)
    rows, slots = made.rows[:-1].long(), made.slots[:-1].long()
    outcomes = []
    for block, weights in enumerate(made.weights):
        hidden = made.hidden[case.spans[block], :-1].double()
        for part in range(2):
            expected, allowed = _expected(case, hidden, weights, part, made.cos_sin)
            outcomes.append(compare(made.cache[block, part][rows, :, slots], expected, allowed))
            made.cache[block, part][rows, :, slots] = float("nan")
    stray = "" if same_bits(made.cache, untouched) else "the cache differs in more than the tokens that were filled in"
    worst = max(outcomes, key=lambda outcome: outcome.used)
    return Outcome(worst.used, worst.error, worst.largest, stray)


def _expected(
    case: Case, hidden: Tensor, weights: BlockWeights, part: int, cos_sin: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Keys (0) or values (1) in fp64, and how far each may be off.

    The normalised state is rounded to the weights' type; products with it are added up, and mixed by the rotation.
    """
    projection = (weights.key, weights.value)[part].double().view(case.kv_heads, case.head_dim, case.hidden)
    given = (weights.key_bias, weights.value_bias)[part]
    bias = None if given is None else given.double().view(case.kv_heads, case.head_dim)
    angles = None if cos_sin is None or part else (cos_sin[0][:-1].double(), cos_sin[1][:-1].double())
    expected = reference.kv_backfill(hidden, weights.norm.double(), projection, bias, angles, EPSILON)
    normed = reference.residual_rmsnorm(hidden, None, weights.norm.double(), EPSILON)
    terms = torch.einsum("th,ndh->tnd", normed.abs(), projection.abs()) + (0 if bias is None else bias.abs())
    if angles is not None:
        cos, sin = (a[:, None].abs() for a in angles)
        first, second = terms.chunk(2, dim=-1)
        terms = torch.cat([first * cos + second * sin, second * cos + first * sin], dim=-1)
    relative = norm_error(case.hidden) + rounding(case.dtype) + (case.hidden + 4) * SUM
    return expected, relative * terms + rounding(case.dtype) * expected.abs() + underflow(case.dtype)

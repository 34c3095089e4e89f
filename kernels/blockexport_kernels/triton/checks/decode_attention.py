"""Is `decode_attention` right?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.checks.rounding import (
    FUNCTION,
    SUM,
    Outcome,
    compare,
    rounding,
    same_bits,
    underflow,
)
from blockexport_kernels.triton.decode_attention import decode_attention


@dataclass(frozen=True, slots=True)
class Case:
    """Rows of some lengths.

    Attributes:
        lengths: tokens of each row with the new one; 0 for a row without any.
        holes: of each row, first slots and ends of what was not run; shorter lists are filled up with empty holes.
    """

    lengths: tuple[int, ...]
    holes: tuple[tuple[tuple[int, int], ...], ...] = ()
    group: int = 7
    kv_heads: int = 2
    head_dim: int = 64
    capacity: int = 0
    num_splits: int | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(slots=True, eq=False)
class Inputs:
    """Tensors of a case; what a row must not see is no number."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    slots: Tensor
    holes: Tensor | None

    def widened(self) -> "Inputs":
        """A copy in fp64."""
        query, key, value, keys, values = (
            t.double() for t in (self.query, self.key, self.value, self.keys, self.values)
        )
        return Inputs(query, key, value, keys, values, self.slots, self.holes)

    def call(self, function: Callable[..., Tensor], **settings: int | None) -> Tensor:
        """Of the kernel or the reference."""
        return function(self.query, self.key, self.value, self.keys, self.values, self.slots, self.holes, **settings)


def make(case: Case, device: torch.device) -> Inputs:
    """Random tensors, poisoned where nothing may be read: views, of rows of query, key and value and of one cache."""
    generator = torch.Generator(device).manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    batch, kv_heads, dim = len(case.lengths), case.kv_heads, case.head_dim
    capacity = case.capacity or max((*case.lengths, 1))
    keys, values = normal(batch, 2, kv_heads, capacity, dim).unbind(1)
    num_holes = max(map(len, case.holes), default=0)
    holes = torch.zeros((batch, num_holes, 2), dtype=torch.int32)
    for row, spans in enumerate(case.holes):
        for index, span in enumerate(spans):
            holes[row, index] = torch.tensor(span)
    for row, length in enumerate(case.lengths):
        for cache in (keys, values):
            cache[row, :, max(length - 1, 0) :] = float("nan")
            for first, end in holes[row].tolist():
                cache[row, :, first:end] = float("nan")
    slots = torch.tensor(case.lengths, dtype=torch.int32, device=device) - 1
    heads = [kv_heads * case.group, kv_heads, kv_heads]
    query, key, value = normal(batch, sum(heads), dim).split(heads, dim=1)
    return Inputs(query, key, value, keys, values, slots, holes.to(device) if num_holes else None)


def check(case: Case, device: torch.device = torch.device("cpu")) -> Outcome:  # noqa: B008  (devices are immutable)
    """Compare kernel and reference, in what they return and in what they leave in the cache."""
    inputs = make(case, device)
    wide = inputs.widened()
    expected_rows = [inputs.keys.clone(), inputs.values.clone()]
    for row, length in enumerate(case.lengths):
        if length:
            expected_rows[0][row, :, length - 1] = inputs.key[row]
            expected_rows[1][row, :, length - 1] = inputs.value[row]
    got = inputs.call(decode_attention, num_splits=case.num_splits)
    expected = wide.call(reference.decode_attention)
    kept = zip((inputs.keys, inputs.values), expected_rows, strict=True)
    stray = "" if all(same_bits(*pair) for pair in kept) else "the cache differs in more than the new tokens"
    return compare(got, expected, allowed(case, wide, expected), stray)


def allowed(case: Case, wide: Inputs, expected: Tensor) -> Tensor:
    """How far each number may be off.

    A weight errs by the error of its score, of exp2, and of rescaling for each tile that raises the largest score, the
    sum of weights that it is divided by as much again. Weights are rounded to the cache's type before they meet values.
    """
    batch, heads, dim = wide.query.shape
    grouped = wide.query.abs().view(batch, case.kv_heads, case.group, dim)
    # Of the scores, what their terms add up to: no score is larger.
    terms = torch.einsum("bkgd,bkcd->bkgc", grouped, wide.keys.nan_to_num().abs()).amax(-1) * dim**-0.5
    scores = (dim + 6) * SUM * terms.view(batch, heads, 1)
    longest = max((*case.lengths, 1))
    rescaled = (longest // 64 + 2) * (FUNCTION + 2 * SUM * terms.view(batch, heads, 1))
    weights = 2 * (scores + rescaled + (longest + 64) * SUM) + (
        rounding(case.dtype) if case.dtype != torch.float32 else 0
    )
    magnitudes = Inputs(
        wide.query, wide.key, wide.value.abs(), wide.keys.clone(), wide.values.abs(), wide.slots, wide.holes
    )
    attended = magnitudes.call(reference.decode_attention)
    small = underflow(case.dtype) * (1 + wide.values.nan_to_num().abs().sum(2).repeat_interleave(case.group, 1))
    out: Tensor = weights * attended + rounding(case.dtype) * expected.abs() + small
    return out

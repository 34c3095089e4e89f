"""Keys and values of blocks that tokens passed by, for going up in depth: all blocks in one launch.

A program makes one head of keys or values of one block for some tokens: it normalises their hidden state, projects it,
rotates keys, and writes to the slots of the cache. Halves of a head are multiplied apart, so that the rotary embedding,
which mixes them, needs nothing from another program. What is computed: `reference.kv_backfill`; how blocks are reached:
`block_table`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockexport_kernels.triton.block_table import ALIGNED_BYTES, BlockTable
from blockexport_kernels.triton.device import dot
from blockexport_kernels.triton.errors import KernelInputError
from blockexport_kernels.triton.registration import register, require_device, wrap_triton

_INPUT_BYTES = 128
_SMALLEST_DOT = 16
_MOST_TOKENS = 64


@triton.jit
def _inverse_rms_kernel(hidden_ptr, inverse_ptr, epsilon, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    numbers = tl.load(hidden_ptr + row * HIDDEN + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    tl.store(inverse_ptr + row, tl.rsqrt(tl.sum(numbers * numbers, axis=0) / HIDDEN + epsilon))


@triton.jit
def _rotate(first, second, cos_ptr, sin_ptr, is_rotated):
    cos = tl.load(cos_ptr, mask=is_rotated, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr, mask=is_rotated, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _backfill_kernel(
    hidden_ptr,
    inverse_ptr,
    spans_ptr,
    matrices_ptr,
    vectors_ptr,
    weight_offsets_ptr,
    cos_ptr,
    sin_ptr,
    cache_ptr,
    cache_offsets_ptr,
    rows_ptr,
    slots_ptr,
    num_tokens,
    row_stride,
    head_stride,
    slot_stride,
    KV_HEADS: tl.constexpr,
    HIDDEN: tl.constexpr,
    HALF: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    block = tl.program_id(2)
    is_value = (tl.program_id(1) >= KV_HEADS).to(tl.int32)
    kv_head = tl.program_id(1) % KV_HEADS
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    halves = tl.arange(0, BLOCK_HALF)
    is_token, is_half = tokens < num_tokens, halves < HALF
    offsets = weight_offsets_ptr + block * 5
    norm_ptr = vectors_ptr + tl.load(offsets)
    outputs = kv_head * 2 * HALF + halves
    weight_ptr = matrices_ptr + tl.multiple_of(tl.load(offsets + 1 + is_value), ALIGNMENT) + outputs[None, :] * HIDDEN
    passing = tl.load(spans_ptr + block).to(tl.int64) * num_tokens + tokens
    inverse = tl.load(inverse_ptr + passing, mask=is_token, other=0.0)
    first = tl.zeros((BLOCK_TOKENS, BLOCK_HALF), tl.float32)
    second = tl.zeros((BLOCK_TOKENS, BLOCK_HALF), tl.float32)
    for start in range(0, HIDDEN, BLOCK_INPUTS):
        inputs = start + tl.arange(0, BLOCK_INPUTS)
        is_input = inputs < HIDDEN
        places = hidden_ptr + passing[:, None] * HIDDEN + inputs[None, :]
        hidden = tl.load(places, mask=is_token[:, None] & is_input[None, :], other=0.0).to(tl.float32)
        norm = tl.load(norm_ptr + inputs, mask=is_input, other=0.0).to(tl.float32)
        normed = (hidden * inverse[:, None] * norm[None, :]).to(matrices_ptr.dtype.element_ty)
        is_weight = is_input[:, None] & is_half[None, :]
        weights = weight_ptr + inputs[:, None]
        first = dot(normed, tl.load(weights, mask=is_weight, other=0.0), first)
        second = dot(normed, tl.load(weights + HALF * HIDDEN, mask=is_weight, other=0.0), second)

    bias = tl.load(offsets + 3 + is_value)
    has_bias = is_half & (bias >= 0)
    bias_ptr = vectors_ptr + bias + outputs
    first += tl.load(bias_ptr, mask=has_bias, other=0.0).to(tl.float32)[None, :]
    second += tl.load(bias_ptr + HALF, mask=has_bias, other=0.0).to(tl.float32)[None, :]
    if cos_ptr is not None:
        angles = tokens[:, None] * HALF + halves[None, :]
        # Values are not rotated.
        is_rotated = is_token[:, None] & is_half[None, :] & (is_value == 0)
        first, second = _rotate(first, second, cos_ptr + angles, sin_ptr + angles, is_rotated)

    row = tl.load(rows_ptr + tokens, mask=is_token, other=0).to(tl.int64)
    slot = tl.load(slots_ptr + tokens, mask=is_token, other=-1).to(tl.int64)
    kept_ptr = cache_ptr + tl.multiple_of(tl.load(cache_offsets_ptr + block * 2 + is_value), ALIGNMENT)
    kept_ptr += kv_head * head_stride + (row * row_stride + slot * slot_stride)[:, None] + halves[None, :]
    is_kept = (slot >= 0)[:, None] & is_half[None, :]
    tl.store(kept_ptr, first.to(cache_ptr.dtype.element_ty), mask=is_kept)
    tl.store(kept_ptr + HALF, second.to(cache_ptr.dtype.element_ty), mask=is_kept)


def _fake(*_args: object) -> None:
    return None


@register("kv_backfill", mutates=("cache",), fake=_fake)
def _operator(
    hidden: Tensor,
    spans: Tensor,
    matrices: Tensor,
    vectors: Tensor,
    weight_offsets: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: Tensor,
    cache_offsets: Tensor,
    rows: Tensor,
    slots: Tensor,
    cache_strides: list[int],
    kv_heads: int,
    head_dim: int,
    epsilon: float,
) -> None:
    num_spans, num_tokens, width = hidden.shape
    if num_tokens == 0:
        return
    inverse = hidden.new_empty((num_spans, num_tokens), dtype=torch.float32)
    wrap_triton(_inverse_rms_kernel)[(num_spans * num_tokens,)](
        hidden, inverse, epsilon, HIDDEN=width, BLOCK=triton.next_power_of_2(width), num_warps=4
    )
    block_tokens = min(max(triton.next_power_of_2(num_tokens), _SMALLEST_DOT), _MOST_TOKENS)
    grid = (triton.cdiv(num_tokens, block_tokens), 2 * kv_heads, weight_offsets.shape[0])
    wrap_triton(_backfill_kernel)[grid](
        hidden,
        inverse,
        spans,
        matrices,
        vectors,
        weight_offsets,
        cos,
        sin,
        cache,
        cache_offsets,
        rows,
        slots,
        num_tokens,
        *cache_strides,
        KV_HEADS=kv_heads,
        HIDDEN=width,
        HALF=head_dim // 2,
        ALIGNMENT=ALIGNED_BYTES // hidden.element_size(),
        BLOCK_TOKENS=block_tokens,
        BLOCK_INPUTS=_INPUT_BYTES // hidden.element_size(),
        BLOCK_HALF=max(triton.next_power_of_2(head_dim // 2), _SMALLEST_DOT),
        num_warps=4,
        # Tiles of fp32 in flight would not fit into the shared memory of smaller GPUs.
        num_stages=3 if hidden.element_size() == 2 else 1,
    )


def kv_backfill(
    hidden: Tensor,
    spans: Tensor,
    table: BlockTable,
    cos_sin: tuple[Tensor, Tensor] | None,
    rows: Tensor,
    slots: Tensor,
    epsilon: float,
) -> None:
    """Fill the cache of blocks that were skipped, from the residual stream where they were.

    Args:
        hidden: (spans, tokens, hidden) in the type of the weights: of each run of skipped blocks, what passed it by.
        spans: (blocks,) int32, the run that each block of the table belongs to.
        table: the blocks.
        cos_sin: (tokens, head_dim / 2) each, or None where positions are not turned into keys.
        rows: (tokens,) int32, each token's row of the cache.
        slots: (tokens,) int32, its slot, less than the capacity; -1 writes nothing.
        epsilon: of the norm.

    Raises:
        KernelInputError: shapes or types differ from these.
        KernelUnavailableError: the tensors are not on a GPU.
    """
    cos, sin = (None, None) if cos_sin is None else cos_sin
    _check(hidden, spans, table, (cos, sin), (rows, slots))
    tokens = [None if t is None else t.contiguous() for t in (hidden, spans, cos, sin, rows, slots)]
    require_device(hidden)
    _operator(
        *tokens[:2],
        table.matrices,
        table.vectors,
        table.weight_offsets,
        *tokens[2:4],
        table.cache,
        table.cache_offsets,
        *tokens[4:],
        list(table.cache_strides),
        table.kv_heads,
        table.head_dim,
        epsilon,
    )


def _check(
    hidden: Tensor,
    spans: Tensor,
    table: BlockTable,
    cos_sin: tuple[Tensor | None, Tensor | None],
    places: tuple[Tensor, Tensor],
) -> None:
    num_tokens = hidden.shape[1]
    if table.head_dim % 2:
        msg = f"heads of {table.head_dim} have no halves; head_dim has to be even"
        raise KernelInputError(msg)
    for name, tensor, shape in (
        ("hidden", hidden, (hidden.shape[0], num_tokens, table.hidden)),
        ("spans", spans, (table.weight_offsets.shape[0],)),
        ("cos", cos_sin[0], (num_tokens, table.head_dim // 2)),
        ("sin", cos_sin[1], (num_tokens, table.head_dim // 2)),
        ("rows", places[0], (num_tokens,)),
        ("slots", places[1], (num_tokens,)),
    ):
        if tensor is not None and tensor.shape != shape:
            msg = (
                f"{name} are {tuple(tensor.shape)}; for a hidden state of {tuple(hidden.shape)} they have to be {shape}"
            )
            raise KernelInputError(msg)
    if {t.dtype for t in (hidden, table.matrices, table.cache)} != {hidden.dtype}:
        msg = f"hidden state, matrices and cache are {hidden.dtype}, {table.matrices.dtype} and {table.cache.dtype}; "
        raise KernelInputError(msg + "they have to be of one type")
    if {t.dtype for t in (spans, *places)} != {torch.int32}:
        msg = f"spans, rows and slots are {spans.dtype}, {places[0].dtype} and {places[1].dtype}; they have to be int32"
        raise KernelInputError(msg)

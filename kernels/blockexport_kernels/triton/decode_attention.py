"""Attention of one new token to each row's cache, split over the cache so that few rows fill a GPU (flash-decoding).

A program attends with the heads of one group to one run of a row's slots, with a running softmax (arXiv:2205.14135); a
second kernel puts the runs together. Runs are shares of what a row holds, so rows of any lengths load programs alike.

The program of a row's first run also holds the new token, in registers, and writes it to the cache. All programs read
only slots before it, so none reads what another writes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockexport_kernels.triton.device import dot
from blockexport_kernels.triton.errors import KernelInputError
from blockexport_kernels.triton.registration import register, require_device, wrap_triton

_BLOCK_SLOTS = 64
_SMALLEST_DOT = 16
_MOST_SPLITS = 64
_PROGRAMS_PER_PROCESSOR = 2
_LOG2_E = 1.4426950408889634


@triton.jit
def _outside(slots, holes_ptr, NUM_HOLES: tl.constexpr, BLOCK_HOLES: tl.constexpr):
    """Which slots lie in no hole of a row."""
    hole = tl.arange(0, BLOCK_HOLES)
    first = tl.load(holes_ptr + hole * 2, mask=hole < NUM_HOLES, other=0)
    end = tl.load(holes_ptr + hole * 2 + 1, mask=hole < NUM_HOLES, other=0)
    inside = (slots[:, None] >= first[None, :]) & (slots[:, None] < end[None, :])
    return tl.max(inside.to(tl.int32), axis=1) == 0


@triton.jit
def _take_in(scores, values, largest, total, attended):
    """A running softmax and one more tile; of nothing at all, the largest score is -inf and the rest 0."""
    now_largest = tl.maximum(largest, tl.max(scores, axis=1))
    # -inf less -inf would be no number.
    base = tl.where(now_largest == float("-inf"), 0.0, now_largest)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(largest - base)
    attended = dot(weights.to(values.dtype), values, attended * shrink[:, None])
    return now_largest, total * shrink + tl.sum(weights, axis=1), attended


@triton.jit
def _attend_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    holes_ptr,
    partial_ptr,
    stats_ptr,
    query_stride,
    key_stride,
    value_stride,
    row_stride,
    head_stride,
    slot_stride,
    scale,
    NUM_HOLES: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_DIMS: tl.constexpr,
    BLOCK_HOLES: tl.constexpr,
):
    row, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    num_splits = tl.num_programs(2)
    slot = tl.load(slots_ptr + row)
    members, dims = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_DIMS)
    heads = kv_head * GROUP + members
    is_dim = dims < HEAD_DIM
    is_query = (members < GROUP)[:, None] & is_dim[None, :]
    query = tl.load(
        query_ptr + row * query_stride + heads[:, None] * HEAD_DIM + dims[None, :], mask=is_query, other=0.0
    )

    # The new token. In all other programs, and in rows without one, a softmax over nothing.
    has_new = (split == 0) & (slot >= 0)
    new_place = kv_head * HEAD_DIM + dims
    key = tl.load(key_ptr + row * key_stride + new_place, mask=is_dim & has_new, other=0.0)
    value = tl.load(value_ptr + row * value_stride + new_place, mask=is_dim & has_new, other=0.0)
    cache_row = row * row_stride + kv_head * head_stride
    new_slot = cache_row + slot.to(tl.int64) * slot_stride + dims
    tl.store(keys_ptr + new_slot, key, mask=is_dim & has_new)
    tl.store(values_ptr + new_slot, value, mask=is_dim & has_new)
    score = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * scale
    largest = tl.where(has_new, score, float("-inf"))
    total = tl.where(has_new, tl.full((BLOCK_HEADS,), 1.0, tl.float32), 0.0)
    attended = tl.zeros((BLOCK_HEADS, BLOCK_DIMS), tl.float32) + value.to(tl.float32)[None, :]

    share = tl.cdiv(tl.cdiv(tl.maximum(slot, 0), num_splits), BLOCK_SLOTS) * BLOCK_SLOTS
    first = split * share
    end = tl.minimum(first + share, slot)
    for start in range(first, end, BLOCK_SLOTS):
        slots = start + tl.arange(0, BLOCK_SLOTS)
        seen = slots < end
        if NUM_HOLES > 0:
            seen = seen & _outside(slots, holes_ptr + row * NUM_HOLES * 2, NUM_HOLES, BLOCK_HOLES)
        there = cache_row + slots.to(tl.int64) * slot_stride
        keys = tl.load(keys_ptr + there[None, :] + dims[:, None], mask=seen[None, :] & is_dim[:, None], other=0.0)
        values = tl.load(values_ptr + there[:, None] + dims[None, :], mask=seen[:, None] & is_dim[None, :], other=0.0)
        scores = dot(query, keys, tl.zeros((BLOCK_HEADS, BLOCK_SLOTS), tl.float32)) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        largest, total, attended = _take_in(scores, values, largest, total, attended)

    out_head = (row * tl.num_programs(1) * GROUP + heads) * num_splits + split
    tl.store(stats_ptr + out_head * 2, largest, mask=members < GROUP)
    tl.store(stats_ptr + out_head * 2 + 1, total, mask=members < GROUP)
    tl.store(partial_ptr + out_head[:, None] * HEAD_DIM + dims[None, :], attended, mask=is_query)


@triton.jit
def _combine_kernel(
    partial_ptr,
    stats_ptr,
    out_ptr,
    num_splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_DIMS: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_DIMS)
    is_split, is_dim = splits < num_splits, dims < HEAD_DIM
    stats = stats_ptr + (head * num_splits + splits) * 2
    largest = tl.load(stats, mask=is_split, other=float("-inf"))
    total = tl.load(stats + 1, mask=is_split, other=0.0)
    overall = tl.max(largest, axis=0)
    shrink = tl.exp2(largest - tl.where(overall == float("-inf"), 0.0, overall))
    there = partial_ptr + (head * num_splits + splits[:, None]) * HEAD_DIM + dims[None, :]
    partial = tl.load(there, mask=is_split[:, None] & is_dim[None, :], other=0.0)
    weight = tl.sum(total * shrink, axis=0)
    # A row without a token has weight 0 and attends to nothing.
    out = tl.sum(partial * shrink[:, None], axis=0) / tl.where(weight > 0, weight, 1.0)
    tl.store(out_ptr + head * HEAD_DIM + dims, out.to(out_ptr.dtype.element_ty), mask=is_dim)


def _fake(query: Tensor, *_rest: object) -> Tensor:
    return query.new_empty(query.shape)


@register("decode_attention", mutates=("keys", "values"), fake=_fake)
def _operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    holes: Tensor | None,
    scale: float,
    num_splits: int,
) -> Tensor:
    batch, heads, head_dim = query.shape
    kv_heads, group = keys.shape[1], heads // keys.shape[1]
    num_holes = 0 if holes is None else holes.shape[1]
    out = query.new_empty(query.shape)
    partial = query.new_empty((batch, heads, num_splits, head_dim), dtype=torch.float32)
    stats = query.new_empty((batch, heads, num_splits, 2), dtype=torch.float32)
    if batch == 0:
        return out
    block_dims = triton.next_power_of_2(head_dim)
    wrap_triton(_attend_kernel)[(batch, kv_heads, num_splits)](
        query,
        key,
        value,
        keys,
        values,
        slots,
        slots if holes is None else holes,
        partial,
        stats,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        scale * _LOG2_E,
        NUM_HOLES=num_holes,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_HEADS=max(triton.next_power_of_2(group), _SMALLEST_DOT),
        BLOCK_SLOTS=_BLOCK_SLOTS,
        BLOCK_DIMS=max(block_dims, _SMALLEST_DOT),
        BLOCK_HOLES=triton.next_power_of_2(max(num_holes, 1)),
        num_warps=4,
        # Tiles of fp32 in flight would not fit into the shared memory of smaller GPUs.
        num_stages=3 if keys.element_size() == 2 else 1,
    )
    wrap_triton(_combine_kernel)[(batch * heads,)](
        partial,
        stats,
        out,
        num_splits,
        HEAD_DIM=head_dim,
        BLOCK_SPLITS=triton.next_power_of_2(num_splits),
        BLOCK_DIMS=block_dims,
        num_warps=4,
    )
    return out


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    holes: Tensor | None = None,
    scale: float | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Append one token to each row of the cache and attend to it; see `reference.decode_attention`.

    Args:
        query: (batch, heads, head_dim) in fp32, bf16 or fp16; may be a view of a wider row, as may key and value.
        key: (batch, kv_heads, head_dim) of the same type; `value` likewise.
        value: see `key`.
        keys: (batch, kv_heads, capacity, head_dim) of the same type, written in place; `values` likewise.
        values: see `keys`; of the same strides.
        slots: (batch,) int32, less than the capacity; -1 for a row without a token.
        holes: (batch, holes, 2) int32, or None.
        scale: of the scores; None for 1 / sqrt(head_dim).
        num_splits: runs that a row's slots are split into; None for as many as fill the GPU.

    Raises:
        KernelInputError: shapes, types or strides differ from these.
        KernelUnavailableError: the tensors are not on a GPU.
    """
    _check(query, key, value, keys, values, slots, holes)
    if num_splits is None:
        num_splits = _fitting_splits(keys)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    holes = None if holes is None else holes.contiguous()
    require_device(query)
    out: Tensor = _operator(query, key, value, keys, values, slots.contiguous(), holes, scale, num_splits)
    return out


def _fitting_splits(keys: Tensor) -> int:
    """From shapes alone: how far rows are filled only the GPU knows, and CUDA graphs fix how many programs run."""
    batch, kv_heads, capacity, _ = keys.shape
    num_processors = 1
    if keys.device.type == "cuda":
        num_processors = torch.cuda.get_device_properties(keys.device).multi_processor_count
    wanted = -(-num_processors * _PROGRAMS_PER_PROCESSOR // max(batch * kv_heads, 1))
    return max(min(wanted, _MOST_SPLITS, -(-capacity // _BLOCK_SLOTS)), 1)


def _check(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor, holes: Tensor | None
) -> None:
    batch, heads, head_dim = query.shape
    kv_heads, capacity = keys.shape[1:3]
    wanted = {
        "key": (key, (batch, kv_heads, head_dim)),
        "value": (value, (batch, kv_heads, head_dim)),
        "keys": (keys, (batch, kv_heads, capacity, head_dim)),
        "values": (values, (batch, kv_heads, capacity, head_dim)),
        "slots": (slots, (batch,)),
        "holes": (holes, (batch, 0 if holes is None else holes.shape[1], 2)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            msg = f"{name} is {tuple(tensor.shape)}; for a query of {tuple(query.shape)} it has to be {shape}"
            raise KernelInputError(msg)
    if heads % kv_heads:
        msg = f"{heads} heads cannot share {kv_heads} key heads; give a multiple of them"
        raise KernelInputError(msg)
    if len({t.dtype for t in (query, key, value, keys, values)}) > 1:
        msg = f"query is {query.dtype}, the cache {keys.dtype}; query, key, value and cache have to be of one type"
        raise KernelInputError(msg)
    if {slots.dtype, slots.dtype if holes is None else holes.dtype} != {torch.int32}:
        msg = f"slots are {slots.dtype}; slots and holes have to be int32"
        raise KernelInputError(msg)
    if keys.stride() != values.stride() or keys.stride(-1) != 1:
        msg = f"keys and values have strides {keys.stride()} and {values.stride()}; they have to be alike and end in 1"
        raise KernelInputError(msg)
    if any(t.stride()[1:] != (head_dim, 1) for t in (query, key, value)):
        msg = f"query, key and value need the heads of a row beside one another: strides (any, {head_dim}, 1)"
        raise KernelInputError(msg)

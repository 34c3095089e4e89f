"""Where the weights and the cache rows of several blocks lie, so that one launch reaches them all.

The number of a kernel's arguments is fixed when it is compiled, and what a compiler of graphs does not see as an
argument it does not know to be written. So blocks are neither a list of tensors nor a table of addresses, but offsets
into one allocation: a weight file read into memory is one, and so is a cache allocated for all blocks at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blockexport_kernels.triton.errors import KernelInputError

ALIGNED_BYTES = 16
"""Matrices and cache rows begin at multiples of this, for the GPU to read that many bytes at a time."""

_NOT_THERE = -1


class BlockWeights(NamedTuple):
    """What makes one block's keys and values; all blocks' matrices lie in one allocation, as do norms and biases.

    Attributes:
        norm: (hidden,) weight of the RMSNorm before attention.
        key: (kv_heads * head_dim, hidden); `value` likewise.
        value: see `key`.
        key_bias: (kv_heads * head_dim,) of the norm's type, or None; `value_bias` likewise.
        value_bias: see `key_bias`.
    """

    norm: Tensor
    key: Tensor
    value: Tensor
    key_bias: Tensor | None = None
    value_bias: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """Offsets, in elements, of several blocks' tensors in the allocations that hold them.

    Attributes:
        matrices: the allocation that holds keys' and values' projections, flat.
        vectors: the one that holds norms and biases; may be the same memory as another type.
        weight_offsets: (blocks, 5) int64 of norm, key, value, key bias, value bias; -1 for a bias that is not there.
        cache: the one that holds all cache rows.
        cache_offsets: (blocks, 2) int64 of keys and values.
        cache_strides: elements from a row to the next, from a head, from a slot.
        kv_heads: of every block.
        head_dim: of every block.
        hidden: width of the residual stream.
    """

    matrices: Tensor
    vectors: Tensor
    weight_offsets: Tensor
    cache: Tensor
    cache_offsets: Tensor
    cache_strides: tuple[int, int, int]
    kv_heads: int
    head_dim: int
    hidden: int

    @classmethod
    def of(cls, weights: Sequence[BlockWeights], rows: Sequence[tuple[Tensor, Tensor]]) -> "BlockTable":
        """Look up where tensors lie; nothing is copied.

        Args:
            weights: of each block.
            rows: keys and values of each block, (batch, kv_heads, capacity, head_dim) each.

        Raises:
            KernelInputError: tensors differ in shape, type or strides, or lie in several allocations or unaligned.
        """
        if not weights or len(weights) != len(rows):
            msg = (
                f"weights of {len(weights)} blocks and cache rows of {len(rows)}; both are needed of one block or more"
            )
            raise KernelInputError(msg)
        kept = rows[0][0]
        _check(weights, kept)
        caches = [tensor for row in rows for tensor in row]
        if any((t.shape, t.stride()) != (kept.shape, kept.stride()) for t in caches) or kept.stride(-1) != 1:
            msg = f"cache rows have to be alike, {tuple(kept.shape)} with strides {kept.stride()}, the last being 1"
            raise KernelInputError(msg)
        matrices, matrix_offsets = _locate([t for w in weights for t in (w.key, w.value)])
        vectors, vector_offsets = _locate([t for w in weights for t in (w.norm, w.key_bias, w.value_bias)])
        cache, cache_offsets = _locate(caches)
        if any(t.data_ptr() % ALIGNED_BYTES for t in (*caches, *(t for w in weights for t in (w.key, w.value)))):
            msg = (
                f"a matrix or a cache row begins at no multiple of {ALIGNED_BYTES} bytes; a weight file aligns tensors"
            )
            raise KernelInputError(msg)
        by_block = [vector_offsets.view(-1, 3)[:, :1], matrix_offsets.view(-1, 2), vector_offsets.view(-1, 3)[:, 1:]]
        return cls(
            matrices=matrices,
            vectors=vectors,
            weight_offsets=torch.cat(by_block, dim=1).to(kept.device),
            cache=cache,
            cache_offsets=cache_offsets.view(-1, 2).to(kept.device),
            cache_strides=(kept.stride(0), kept.stride(1), kept.stride(2)),
            kv_heads=kept.shape[1],
            head_dim=kept.shape[3],
            hidden=weights[0].norm.numel(),
        )


def _check(weights: Sequence[BlockWeights], kept: Tensor) -> None:
    outputs, hidden = kept.shape[1] * kept.shape[3], weights[0].norm.numel()
    shapes = [(hidden,), (outputs, hidden), (outputs, hidden), (outputs,), (outputs,)]
    for block in weights:
        for name, tensor, shape in zip(BlockWeights._fields, block, shapes, strict=True):
            if tensor is not None and (tensor.shape != shape or not tensor.is_contiguous()):
                msg = f"{name} is {tuple(tensor.shape)}; next to a cache of {tuple(kept.shape)} it has to be {shape}"
                raise KernelInputError(msg + ", and contiguous")


def _locate(tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The allocation that tensors lie in, flat and of their type, and the offset of each in it."""
    there = [tensor for tensor in tensors if tensor is not None]
    start = there[0].untyped_storage().data_ptr()
    if {(t.untyped_storage().data_ptr(), t.dtype) for t in there} != {(start, there[0].dtype)}:
        msg = "tensors of several types or in several allocations; copy them into one of one type, as a weight file is"
        raise KernelInputError(msg)
    flat = there[0].new_empty(0).set_(there[0].untyped_storage())
    offsets = [_NOT_THERE if t is None else t.storage_offset() for t in tensors]
    return flat, torch.tensor(offsets, dtype=torch.int64)

"""Round-to-nearest quantisation of matrices, one scale for each run of inputs.

The stored layout is that of ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized`
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), so one copy serves an embedding and a
tied head.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockexport.core.precision import BLOCK_SIZES, Precision

# Clipping the largest weight of a block often costs less than a coarser step for all others; of these shares of the
# largest weight the one with the least squared error is taken.
_CLIPPING = (1.0, 0.95, 0.9, 0.85, 0.8)
# Rows in fp64 at a time; a head of a hundred million weights would else take gigabytes.
_CHUNK_ROWS = 4096
# Below, a block has no scale that could be divided by.
_TINY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedMatrix:
    """A matrix (rows, columns) as integers, `rows` being outputs and `columns` inputs.

    Attributes:
        packed: (rows, blocks, block_size * bits / 8) uint8; of two 4-bit integers in a byte, the first is the low one.
        scales: (rows, blocks) float32.
        zero_points: (rows, ceil(blocks * bits / 8)) uint8, packed like the integers; None when all are the middle of
            the range.
        bits: 4 or 8.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    bits: int

    @property
    def block_size(self) -> int:
        """Columns that share a scale."""
        return int(self.packed.shape[2]) * 8 // self.bits

    def dequantise(self) -> NDArray[np.float32]:
        """The matrix that the integers stand for, (rows, columns)."""
        rows, blocks = self.scales.shape
        integers = _unpack(self.packed.reshape(rows, -1), self.bits).reshape(rows, blocks, self.block_size)
        middle: NDArray[np.float32] | float = float(1 << (self.bits - 1))
        if self.zero_points is not None:
            middle = _unpack(self.zero_points, self.bits)[:, :blocks, None].astype(np.float32)
        return ((integers.astype(np.float32) - middle) * self.scales[:, :, None]).reshape(rows, -1)


def usable_block_size(num_columns: int, wanted: int) -> int | None:
    """The largest block size up to `wanted` that divides a row, or None when none does.

    A row that ends in a partial block would be padded in one operator's layout and not in the other's.
    """
    return max((size for size in BLOCK_SIZES if size <= wanted and num_columns % size == 0), default=None)


def quantise(matrix: NDArray[np.floating], precision: Precision) -> QuantisedMatrix:
    """Quantise a matrix (rows, columns) whose columns are a multiple of the block size.

    Args:
        matrix: finite numbers.
        precision: bits, block size and symmetry.
    """
    rows = range(0, len(matrix), _CHUNK_ROWS)
    parts = [_quantise_rows(np.asarray(matrix[i : i + _CHUNK_ROWS], np.float64), precision) for i in rows]
    integers, scales, zero_points = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    num_rows, blocks = scales.shape
    packed = _pack(integers.reshape(num_rows, -1), precision.bits)
    return QuantisedMatrix(
        packed=packed.reshape(num_rows, blocks, -1),
        scales=scales,
        zero_points=None if precision.symmetric else _pack(zero_points, precision.bits),
        bits=precision.bits,
    )


def _quantise_rows(
    rows: NDArray[np.float64], precision: Precision
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    blocks = rows.reshape(len(rows), -1, precision.block_size)
    steps = _symmetric_step if precision.symmetric else _asymmetric_step
    integers = np.zeros(blocks.shape, np.uint8)
    scales, zeros = np.zeros(blocks.shape[:2], np.float32), np.zeros(blocks.shape[:2], np.uint8)
    least = np.full(blocks.shape[:2], np.inf)
    for share in _CLIPPING:
        step, middle = steps(blocks, share, precision.bits)
        top = (1 << precision.bits) - 1
        rounded = np.clip(np.rint(blocks / step[..., None]) + middle[..., None], 0, top)
        error = np.square((rounded - middle[..., None]) * step[..., None] - blocks).sum(-1)
        better = error < least
        integers[better], scales[better], zeros[better] = rounded[better], step[better], middle[better]
        least = np.where(better, error, least)
    return integers, scales, zeros


def _symmetric_step(
    blocks: NDArray[np.float64], share: float, bits: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A scale whose sign puts the largest weight where the range of integers is one longer."""
    middle = 1 << (bits - 1)
    place = np.abs(blocks).argmax(-1)[..., None]
    largest = np.take_along_axis(blocks, place, -1)[..., 0]
    return _nonzero(share * largest / -middle), np.full(blocks.shape[:2], float(middle))


def _asymmetric_step(
    blocks: NDArray[np.float64], share: float, bits: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    top = (1 << bits) - 1
    low, high = np.minimum(blocks.min(-1), 0) * share, np.maximum(blocks.max(-1), 0) * share
    scales = _nonzero((high - low) / top)
    return scales, np.clip(np.rint(-low / scales), 0, top)


def _nonzero(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales as they will be stored, so that rounding them adds no error; 1 where a block is all zeros."""
    stored = scales.astype(np.float32).astype(np.float64)
    return np.where(np.abs(stored) < _TINY, 1.0, stored)


def _pack(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Rows of integers to rows of bytes."""
    if bits == 8:
        return np.ascontiguousarray(integers)
    padded = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2)))
    return np.ascontiguousarray(padded[:, 0::2] | padded[:, 1::2] << 4)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Rows of bytes to rows of integers."""
    if bits == 8:
        return packed
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(len(packed), -1)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.precision import Precision
from blockexport.quantization.blockwise import QuantisedMatrix, quantise, usable_block_size

PRECISIONS = [
    Precision(name=name, block_size=size, symmetric=symmetric)
    for name in ("int8", "int4")
    for size in (16, 32, 64)
    for symmetric in (True, False)
]


def _matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_each_weight_is_off_by_half_a_step_or_was_clipped(precision: Precision) -> None:
    matrix = _matrix(7, 128)
    found = quantise(matrix, precision)
    step = np.repeat(np.abs(found.scales), precision.block_size, axis=1)
    integers_reach = (1 << precision.bits) - 1
    error = np.abs(found.dequantise() - matrix)
    # Clipping at the smallest share leaves the largest weight off by a fifth of the range.
    assert (error <= np.maximum(step / 2, 0.2 * step * integers_reach / 2 + step) * (1 + 1e-5)).all()
    assert np.mean(error <= step / 2 * (1 + 1e-5)) > 0.9


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_what_can_be_said_exactly_is(precision: Precision) -> None:
    middle = 1 << (precision.bits - 1)
    rng = np.random.default_rng(1)
    integers = rng.integers(-middle, middle, (5, 128)).astype(np.float64)
    # Both ends of the range occur, so the step is 1 or none other gives as little error.
    integers[:, :: precision.block_size] = -middle
    integers[:, 1 :: precision.block_size] = middle - 1
    np.testing.assert_array_equal(quantise(integers * 0.25, precision).dequantise(), integers * 0.25)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_zeros_stay_zeros(precision: Precision) -> None:
    matrix = _matrix(4, 128)
    matrix[1] = 0
    matrix[2, : precision.block_size] = 0
    found = quantise(matrix, precision)
    assert np.isfinite(found.scales).all()
    assert (found.dequantise()[matrix == 0] == 0).all()


def test_finer_blocks_and_more_bits_are_closer() -> None:
    matrix = _matrix(16, 256)

    def error(text: str) -> float:
        return float(np.square(quantise(matrix, Precision.parse(text)).dequantise() - matrix).mean())

    assert error("int4g16") < error("int4g64") < error("int4g256")
    assert error("int8g64") < error("int4g64") / 100


def test_choosing_where_to_clip_beats_never_clipping() -> None:
    matrix = _matrix(32, 128)
    found = quantise(matrix, Precision.parse("int4g32"))
    blocks = matrix.reshape(32, -1, 32)
    scales = np.abs(blocks).max(-1, keepdims=True) / 8
    unclipped = (np.clip(np.rint(blocks / scales), -8, 7) * scales).reshape(matrix.shape)
    ours, theirs = np.square(found.dequantise() - matrix).mean(), np.square(unclipped - matrix).mean()
    assert ours < theirs


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from(PRECISIONS), st.integers(0, 2**32 - 1))
def test_packing_loses_nothing(rows: int, blocks: int, precision: Precision, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = blocks * precision.block_size
    integers = rng.integers(0, 1 << precision.bits, (rows, columns)).astype(np.uint8)
    low, high = integers[:, 0::2], integers[:, 1::2]
    packed = integers if precision.bits == 8 else (low | high << 4).astype(np.uint8)
    matrix = QuantisedMatrix(
        packed.reshape(rows, blocks, -1), np.ones((rows, blocks), np.float32), None, precision.bits
    )
    assert matrix.block_size == precision.block_size
    np.testing.assert_array_equal(matrix.dequantise(), integers.astype(np.float32) - (1 << (precision.bits - 1)))


def test_rows_are_quantised_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = _matrix(10, 64)
    whole = quantise(matrix, Precision.parse("int4g32a"))
    monkeypatch.setattr("blockexport.quantization.blockwise._CHUNK_ROWS", 3)
    chunked = quantise(matrix, Precision.parse("int4g32a"))
    np.testing.assert_array_equal(whole.packed, chunked.packed)
    np.testing.assert_array_equal(whole.scales, chunked.scales)
    assert whole.zero_points is not None
    np.testing.assert_array_equal(whole.zero_points, chunked.zero_points)


@pytest.mark.parametrize(("columns", "wanted", "found"), [(896, 128, 128), (48, 64, 16), (96, 64, 32), (20, 64, None)])
def test_a_block_size_divides_the_row(columns: int, wanted: int, found: int | None) -> None:
    assert usable_block_size(columns, wanted) == found

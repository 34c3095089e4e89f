import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.quantization.bf16 import Bf16Matrix

# bf16 has 8 significant bits, so rounding to the nearest is off by 2^-9 of the next power of two at most.
LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
SMALLEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).tiny)


@given(st.integers(0, 2**16 - 1))
def test_what_bf16_has_stays_bit_for_bit(bits: int) -> None:
    number = np.array([[bits << 16]], np.uint32).view(np.float32)
    kept = Bf16Matrix.of(number).dequantise()
    if np.isnan(number[0, 0]):
        assert np.isnan(kept[0, 0])
    else:
        assert kept.view(np.uint32) == number.view(np.uint32)


@given(st.floats(SMALLEST, LARGEST, width=32), st.sampled_from([-1.0, 1.0]))
def test_all_else_goes_to_the_nearest(size: float, sign: float) -> None:
    number = np.float32(sign * size)
    kept = Bf16Matrix.of(np.array([[number]])).dequantise()[0, 0]
    exponent = np.frexp(number)[1]
    assert abs(float(kept) - float(number)) <= 2.0 ** (float(exponent) - 9)


@pytest.mark.parametrize(
    ("number", "kept"), [(1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (1 + 2**-8 + 2**-20, 1 + 2**-7)]
)
def test_ties_go_to_the_even_one(number: float, kept: float) -> None:
    assert Bf16Matrix.of(np.array([[number]], np.float32)).dequantise()[0, 0] == kept


def test_transposed_matrices_are_stored_in_order() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = Bf16Matrix.of(matrix.T)
    assert stored.values.flags.c_contiguous
    np.testing.assert_array_equal(stored.dequantise(), matrix.T)

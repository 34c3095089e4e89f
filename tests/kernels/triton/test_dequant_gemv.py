import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockexport.core.precision import Precision
from blockexport.quantization.blockwise import quantise
from blockexport_kernels.triton import reference

pytest.importorskip("triton")

from blockexport_kernels.triton.checks.dequant_gemv import Case, check, make
from blockexport_kernels.triton.checks.rounding import SUM, compare
from blockexport_kernels.triton.dequant_gemv import dequant_gemv
from blockexport_kernels.triton.errors import KernelInputError, KernelUnavailableError

CPU = torch.device("cpu")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("name", "block_size"), [("int4", 32), ("int8", 16), ("int4", 128)])
def test_the_layout_is_that_of_bundles(name: str, block_size: int, symmetric: bool) -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 3 * block_size))
    stored = quantise(matrix, Precision(name=name, block_size=block_size, symmetric=symmetric))
    zeros = None if stored.zero_points is None else torch.from_numpy(stored.zero_points)
    got = reference.dequantise(torch.from_numpy(stored.packed), torch.from_numpy(stored.scales), zeros, stored.bits)
    assert np.array_equal(got.numpy(), stored.dequantise())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_zeros", [True, False])
def test_matches_the_reference(interpreted, bits: int, has_zeros: bool, dtype: torch.dtype) -> None:
    outcome = interpreted(check, Case(13, 9, bits=bits, has_zeros=has_zeros, has_bias=has_zeros, dtype=dtype))
    assert outcome.passed, outcome


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    outputs=st.integers(0, 9),
    groups=st.integers(1, 40),
    group_size=st.sampled_from((16, 32, 64, 128, 256)),
    bits=st.sampled_from((4, 8)),
    rows=st.integers(0, 3),
    has_zeros=st.booleans(),
)
def test_any_shape(interpreted, **shape: int) -> None:
    outcome = interpreted(check, Case(**shape))
    assert outcome.passed, (shape, outcome)


def test_one_input_less_is_seen() -> None:
    made = make(Case(13, 9), CPU)
    weights = reference.dequantise(made.codes, made.scales.double(), made.zeros, 4)
    inputs = made.inputs.double()
    bound = (inputs.shape[1] + 3) * SUM * (inputs.abs() @ weights.abs().T)
    assert compare(inputs @ weights.T, inputs @ weights.T, bound).passed
    assert not compare(inputs[:, 1:] @ weights[:, 1:].T, inputs @ weights.T, bound).passed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 3}, "3 bits"),
        ({"bits": 8}, r"inputs are \(1, 288\).*has to be|have to be \(1, 144\)"),
        ({"codes": torch.zeros(13, 9, 5, dtype=torch.uint8)}, "groups of 10 inputs"),
        ({"codes": torch.zeros(13, 9, 16, dtype=torch.int8)}, "uint8"),
        ({"scales": torch.zeros(13, 8)}, r"scales are \(13, 8\)"),
        ({"zeros": torch.zeros(13, 9, dtype=torch.uint8)}, r"zeros are \(13, 9\)"),
        ({"inputs": torch.zeros(17, 288)}, "17 rows"),
    ],
)
def test_what_cannot_be_taken_is_named(changes, words: str) -> None:
    made = make(Case(13, 9), CPU)
    given = {"inputs": made.inputs, "codes": made.codes, "scales": made.scales, "zeros": made.zeros, "bits": 4}
    with pytest.raises(KernelInputError, match=words):
        dequant_gemv(**(given | changes))


def test_without_a_gpu_it_says_so() -> None:
    made = make(Case(13, 9), CPU)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        dequant_gemv(made.inputs, made.codes, made.scales, made.zeros, 4)

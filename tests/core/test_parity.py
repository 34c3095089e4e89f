import numpy as np
import pytest
from safetensors.numpy import save

from blockexport.core.parity import TOLERANCE_FACTOR, ParityCase, pack_cases, tolerance_of, unpack_cases
from blockexport.errors import ParityError


def case(check: str, tolerance: float) -> ParityCase:
    return ParityCase(
        check,
        {"prompt": np.arange(4).reshape(2, 2)},
        np.ones((2, 1, 3), np.float32),
        np.zeros((2, 1), np.int64),
        np.zeros(0, np.int64),
        tolerance,
    )


CASES = {f"d{depth}": tuple(case(f"check{i}", 0.1 * depth + i / 3) for i in range(3)) for depth in (8, 4, 2)}


def test_what_was_packed_comes_back() -> None:
    found = unpack_cases(*pack_cases(CASES))
    assert list(found) == list(CASES)
    for level, cases in CASES.items():
        for ours, theirs in zip(found[level], cases, strict=True):
            assert (ours.check, ours.tolerance) == (theirs.check, theirs.tolerance)
            assert ours.inputs.keys() == theirs.inputs.keys()
            np.testing.assert_array_equal(ours.inputs["prompt"], theirs.inputs["prompt"])
            np.testing.assert_array_equal(ours.expected, theirs.expected)


def test_equal_cases_make_equal_files() -> None:
    files = {save(*pack_cases(CASES)) for _ in range(20)}
    assert len(files) == 1


def test_a_file_without_cases_has_none() -> None:
    assert unpack_cases({}, {}) == {}


def test_the_tolerance_is_a_multiple_of_the_references_own_error() -> None:
    exact = np.array([1.0, 2.0])
    off = 2.0**-12
    assert tolerance_of(np.array([1.0, 2.0 + off], np.float32), exact) == TOLERANCE_FACTOR * off
    assert tolerance_of(np.array([1.0, 2.0], np.float32), exact) > 0


@pytest.mark.parametrize("wrong", [2.5, np.nan, np.inf])
def test_a_reference_that_disagrees_with_itself_proves_nothing(wrong: float) -> None:
    with pytest.raises(ParityError, match="nothing can be proved against it"):
        tolerance_of(np.array([1.0, wrong], np.float32), np.array([1.0, 2.0]))

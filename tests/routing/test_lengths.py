import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.routing.lengths import LengthPredictor


def test_nothing_is_predicted_from_nothing() -> None:
    assert LengthPredictor().remaining(3, 10) == 7


def test_answers_as_long_as_those_before_are_expected() -> None:
    lengths = LengthPredictor(quantile=0.5)
    for index in range(64):
        lengths.observe(40 if index % 4 else 90, 100)
    assert lengths.remaining(0, 100) == pytest.approx(40)
    # Past forty tokens it must be one of the long ones.
    assert lengths.remaining(50, 100) == pytest.approx(40)
    assert lengths.remaining(50, 200) == pytest.approx(30)


@given(ended=st.lists(st.integers(1, 50), max_size=80), at=st.integers(0, 50))
def test_something_is_always_left_and_never_more_than_may_be(ended: list[int], at: int) -> None:
    lengths = LengthPredictor(least=1)
    for num_tokens in ended:
        lengths.observe(num_tokens, 50)
    assert 1 <= lengths.remaining(at, 50) <= max(1, 50 - at)

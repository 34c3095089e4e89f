import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.precision import BLOCK_SIZES, DEFAULT_BLOCK_SIZE, FP32, Precision
from blockexport.errors import ConfigError

quantised = st.builds(
    Precision,
    name=st.sampled_from(["int8", "int4"]),
    block_size=st.sampled_from(BLOCK_SIZES),
    symmetric=st.booleans(),
)


BF16 = Precision(name="bf16")


@given(quantised | st.sampled_from([FP32, BF16]))
def test_text_is_read_back(precision: Precision) -> None:
    assert Precision.parse(str(precision)) == precision


def test_what_is_left_out_has_a_default() -> None:
    assert Precision.parse("int4") == Precision(name="int4", block_size=DEFAULT_BLOCK_SIZE)
    assert Precision.parse("fp32") == FP32
    assert [precision.bits for precision in map(Precision.parse, ("fp32", "bf16", "int8", "int4"))] == [32, 16, 8, 4]


def test_integers_are_quantised_and_other_numbers_are_not() -> None:
    assert Precision.parse("int8").is_quantised
    assert not FP32.is_quantised
    assert not BF16.is_quantised


@pytest.mark.parametrize(
    "text", ["", "int2", "int4g", "int4g7", "int4g32s", "fp32g32", "bf16g32", "bf16a", "fp16", "INT4", "int4 "]
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"bf16|block size"):
        Precision.parse(text)

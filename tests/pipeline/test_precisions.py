import pytest

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.precision import FP32, Precision
from blockexport.errors import ConfigError
from blockexport.pipeline.precisions import level_precisions, parse_precisions, read_precisions

INT4, INT8, BF16 = (Precision.parse(text) for text in ("int4", "int8g32", "bf16"))
LADDER = DepthLadder.from_masks([DepthMask.from_kept(range(depth), 6) for depth in (6, 4, 2)])


def test_one_for_all_or_one_for_each() -> None:
    assert level_precisions(INT4, LADDER) == {"d6": INT4, "d4": INT4, "d2": INT4}
    assert level_precisions({"d4": INT8}, LADDER) == {"d6": FP32, "d4": INT8, "d2": FP32}
    assert level_precisions({"d6": BF16, "d2": INT4}, LADDER) == {"d6": BF16, "d4": FP32, "d2": INT4}


def test_a_name_that_is_no_level_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"d5.*d6, d4, d2"):
        level_precisions({"d5": INT4}, LADDER)


def test_what_recipes_and_command_lines_say() -> None:
    assert read_precisions("bf16") == parse_precisions(["bf16"]) == BF16
    assert read_precisions("int4") == parse_precisions(["int4"]) == INT4
    assert read_precisions({"d6": "int8g32"}) == parse_precisions(["d6=int8g32"]) == {"d6": INT8}


@pytest.mark.parametrize(
    "entries", [["int4", "int8"], ["d6=int4", "int8"], ["d6=int4", "d6=int8"], ["d6=int3"], ["=int4x"]]
)
def test_mixtures_are_refused(entries: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_precisions(entries)

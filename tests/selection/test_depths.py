"""Depths as text, as fractions, and for a budget."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.errors import ConfigError, MaskError
from blockexport.selection import depths_for_budget, parse_depths, resolve_depths


@pytest.mark.parametrize(
    ("text", "depths"),
    [("12,9,6", (12, 9, 6)), (" 1.0, 0.75 ", (1.0, 0.75)), ("3", (3,)), ("1,1.0", (1, 1.0)), (".5", (0.5,))],
)
def test_a_point_makes_a_fraction(text, depths):
    parsed = parse_depths(text)
    assert parsed == depths
    assert [type(depth) for depth in parsed] == [type(depth) for depth in depths]


@pytest.mark.parametrize("text", ["", "12,", "twelve", "12;9", "50%", "auto"])
def test_unreadable_depths(text):
    with pytest.raises(MaskError, match="not readable"):
        parse_depths(text)


@pytest.mark.parametrize(
    ("fraction", "num_blocks", "count"),
    [(0.5, 5, 3), (0.35, 10, 4), (0.25, 10, 3), (0.01, 12, 1), (1.0, 12, 12), (0.75, 12, 9), (0.145, 100, 15)],
)
def test_fractions_round_half_up_to_at_least_one(fraction, num_blocks, count):
    assert resolve_depths([fraction], num_blocks) == ((count,), ())


@given(st.integers(1, 1000), st.integers(1, 200))
def test_fractions_round_as_exact_arithmetic_does(thousandths, num_blocks):
    fraction = Fraction(thousandths, 1000)
    expected = max(1, math.floor(fraction * num_blocks + Fraction(1, 2)))
    assert resolve_depths([thousandths / 1000], num_blocks)[0] == (expected,)


def test_depths_come_out_deepest_first_and_once():
    counts, notes = resolve_depths([3, 0.5, 12, 0.26, np.int64(6)], 12)
    assert counts == (12, 6, 3)
    assert notes == (
        "depths 0.5, 6 are all 6 of 12 blocks and make one level",
        "depths 3, 0.26 are all 3 of 12 blocks and make one level",
    )


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([], "no depths"),
        ([13], "outside 1..12"),
        ([0], "outside 1..12"),
        ([-1], "outside 1..12"),
        ([0.0], "no fraction"),
        ([1.5], "no fraction"),
        ([12.0], "no fraction"),
        ([-0.5], "no fraction"),
        ([math.nan], "no fraction"),
        ([math.inf], "no fraction"),
        ([True], "no number"),
        (["6"], "no number"),
        ([None], "no number"),
    ],
)
def test_depths_that_cannot_be(depths, message):
    with pytest.raises(MaskError, match=message):
        resolve_depths(depths, 12)


@pytest.mark.parametrize(("budget_ms", "depth"), [(100, 12), (70, 12), (69.9, 11), (35, 5), (15, 1), (14.9, None)])
def test_the_deepest_depth_that_fits_a_budget(budget_ms, depth):
    if depth is None:
        with pytest.raises(ConfigError, match="at least 15 ms"):
            depths_for_budget(10, 5, budget_ms, 12)
    else:
        assert depths_for_budget(10, 5, budget_ms, 12) == depth


@given(st.floats(0, 50), st.floats(0, 5), st.floats(0, 200), st.integers(1, 40))
def test_the_chosen_depth_fits_and_the_next_does_not(fixed_ms, per_block_ms, budget_ms, num_blocks):
    try:
        depth = depths_for_budget(fixed_ms, per_block_ms, budget_ms, num_blocks)
    except ConfigError:
        assert fixed_ms + per_block_ms > budget_ms
        return
    assert fixed_ms + depth * per_block_ms <= budget_ms
    assert depth == num_blocks or fixed_ms + (depth + 1) * per_block_ms > budget_ms


@pytest.mark.parametrize("figures", [(math.nan, 1, 1), (1, math.inf, 1), (1, 1, math.nan), (-1, 1, 1), (1, 1, -1)])
def test_budgets_of_figures_that_cannot_be(figures):
    with pytest.raises(ConfigError, match="finite number of milliseconds"):
        depths_for_budget(*figures, 12)

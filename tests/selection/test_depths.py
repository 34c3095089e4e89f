"""Depths as text, as fractions, and for a budget."""

import math
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.errors import ConfigError, MaskError
from blockexport.selection import depth_for_budget, parse_depths, resolve_depths


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
            depth_for_budget(lambda depth: 10 + 5 * depth, budget_ms, 12)
    else:
        assert depth_for_budget(lambda depth: 10 + 5 * depth, budget_ms, 12) == depth


@given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.floats(0, 200))
def test_the_chosen_depth_fits_and_no_deeper_one_does(added_ms, budget_ms):
    latency_ms = list(accumulate(added_ms))
    try:
        depth = depth_for_budget(lambda depth: latency_ms[depth - 1], budget_ms, len(latency_ms))
    except ConfigError:
        assert latency_ms[0] > budget_ms
        return
    assert latency_ms[depth - 1] <= budget_ms
    assert all(latency > budget_ms for latency in latency_ms[depth:])


@pytest.mark.parametrize("budget_ms", [math.nan, math.inf, -1])
def test_budgets_that_cannot_be(budget_ms):
    with pytest.raises(ConfigError, match="finite number of milliseconds"):
        depth_for_budget(float, budget_ms, 12)

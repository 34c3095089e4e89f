"""Masks, levels and ladders: what holds for all of them, and what is refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.masks import DepthLadder, DepthLevel, DepthMask
from blockexport.errors import BlockExportError, MaskError

flag_lists = st.lists(st.booleans(), min_size=1, max_size=40).filter(any)


@st.composite
def ladders(draw):
    """A ladder by cutting one random order of blocks at random depths."""
    num_blocks = draw(st.integers(1, 20))
    order = draw(st.permutations(range(num_blocks)))
    depths = draw(st.sets(st.integers(1, num_blocks), min_size=1))
    return DepthLadder.from_masks([DepthMask.from_kept(order[:depth], num_blocks) for depth in depths])


@given(flag_lists)
def test_all_ways_to_build_a_mask_agree(flags):
    kept = [i for i, flag in enumerate(flags) if flag]
    skipped = [i for i, flag in enumerate(flags) if not flag]
    mask = DepthMask.from_bools(flags)
    assert mask == DepthMask.from_kept(reversed(kept), len(flags))
    assert mask == DepthMask.from_skipped(reversed(skipped), len(flags))
    assert mask == DepthMask.from_bools(np.array(flags))
    assert mask == DepthMask.from_bools(torch.tensor(flags))
    assert mask == DepthMask.from_kept(np.array(kept), len(flags))
    assert mask.to_bools() == tuple(flags)
    assert (mask.kept, mask.skipped) == (tuple(kept), tuple(skipped))
    assert (mask.depth, mask.num_blocks) == (len(kept), len(flags))


@given(flag_lists, flag_lists)
def test_subset_means_what_sets_mean(left, right):
    a, b = DepthMask.from_bools(left), DepthMask.from_bools(right)
    assert a.is_subset_of(b) == (len(left) == len(right) and set(a.kept) <= set(b.kept))


@given(flag_lists.filter(lambda flags: sum(flags) > 1), st.data())
def test_without_takes_one_block_away(flags, data):
    mask = DepthMask.from_bools(flags)
    block = data.draw(st.sampled_from(mask.kept))
    smaller = mask.without(block)
    assert set(mask.kept) - set(smaller.kept) == {block}
    assert smaller.is_subset_of(mask)
    assert not mask.is_subset_of(smaller)


def test_full_keeps_everything():
    assert DepthMask.full(3) == DepthMask((0, 1, 2), 3)
    assert DepthMask.full(3).skipped == ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DepthMask.from_kept([], 4), "skips all 4 blocks; keep at least one"),
        (lambda: DepthMask.from_skipped([0, 1], 2), "skips all 2 blocks"),
        (lambda: DepthMask.from_bools([False, False]), "skips all 2 blocks"),
        (lambda: DepthMask.from_bools([]), "num_blocks is 0"),
        (lambda: DepthMask.full(0), "num_blocks is 0"),
        (lambda: DepthMask.full(1).without(0), "skips all 1 blocks"),
        (lambda: DepthMask.from_kept([0, 4], 4), r"reach outside 0\.\.3"),
        (lambda: DepthMask.from_kept([-1], 4), r"reach outside 0\.\.3"),
        (lambda: DepthMask.from_skipped([4], 4), r"reach outside 0\.\.3"),
        (lambda: DepthMask.from_skipped([-1], 4), r"reach outside 0\.\.3"),
        (lambda: DepthMask.from_kept([1, 1], 4), "name each block once"),
        (lambda: DepthMask((1, 0), 4), "not distinct and ascending"),
        (lambda: DepthMask.from_bools([1, 0, 1]), "one bool per block"),
        (lambda: DepthMask.from_bools(np.array([0.0, 1.0])), "one bool per block"),
    ],
)
def test_masks_that_cannot_be(build, message):
    with pytest.raises(MaskError, match=message) as caught:
        build()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BlockExportError)


def test_masks_are_values():
    assert len({DepthMask.full(2), DepthMask.from_kept([1, 0], 2), DepthMask.from_kept([1], 2)}) == 2


@given(ladders())
def test_a_ladder_is_nested_deepest_first_and_survives_its_file(ladder):
    for deeper, shallower in zip(ladder.levels, ladder.levels[1:], strict=False):
        assert set(shallower.kept) < set(deeper.kept)
    for level in ladder.levels:
        assert ladder.level(level.name) is level
        assert level.name == f"d{level.depth}"
    assert DepthLadder.from_json(json.loads(json.dumps(ladder.to_json()))) == ladder


@given(ladders().filter(lambda ladder: len(ladder.levels) > 1), st.randoms())
def test_the_order_in_which_masks_are_given_does_not_matter(ladder, random):
    masks = [level.mask for level in ladder.levels]
    random.shuffle(masks)
    assert DepthLadder.from_masks(masks) == ladder


def test_a_ladder_keeps_its_strategy_and_notes_on_file():
    ladder = DepthLadder.from_masks([DepthMask.full(3)], strategy="greedy", notes=["why"])
    again = DepthLadder.from_json(ladder.to_json())
    assert (again.strategy, again.notes) == ("greedy", ("why",))


def test_the_file_of_a_ladder_says_what_the_command_line_promises():
    (level,) = DepthLadder.from_masks([DepthMask.from_kept([0, 2], 3)]).to_json()["levels"]
    assert level == {"name": "d2", "depth": 2, "kept": [0, 2], "skipped": [1]}


def masks(*kept):
    return [DepthMask.from_kept(each, 4) for each in kept]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DepthLadder.from_masks([]), "at least one level"),
        (lambda: DepthLadder.from_masks(masks([0, 1], [2])), "no strict subset"),
        (lambda: DepthLadder.from_masks([DepthMask.full(4), DepthMask.full(3)]), "no strict subset"),
        (lambda: DepthLadder.from_masks(masks([0, 1], [1, 2])), "repeat"),
        (
            lambda: DepthLadder(tuple(DepthLevel(n, m) for n, m in zip("ab", masks([0], [0, 1]), strict=True))),
            "deepest first",
        ),
        (
            lambda: DepthLadder(tuple(DepthLevel(n, m) for n, m in zip("ab", masks([0], [0]), strict=True))),
            "no strict subset",
        ),
        (lambda: DepthLadder(tuple(DepthLevel("a", m) for m in masks([0, 1], [0]))), "names .* repeat"),
        (lambda: DepthLadder.from_masks(masks([0, 1], [0])).level("d3"), "no level 'd3'; this ladder has d2, d1"),
        (lambda: DepthLadder.from_json({"levels": []}), "not a ladder file"),
        (lambda: DepthLadder.from_json([]), "not a ladder file"),
        (lambda: DepthLadder.from_json({"num_blocks": 4, "levels": [{"name": "a"}]}), "not a ladder file"),
        (lambda: DepthLadder.from_json({"num_blocks": "4", "levels": [{"name": "a", "kept": [0]}]}), "not a ladder"),
        (lambda: DepthLadder.from_json({"num_blocks": 4, "levels": [{"name": "a", "kept": [0.5]}]}), "not a ladder"),
        (lambda: DepthLadder.from_json({"num_blocks": 4, "levels": [{"name": "a", "kept": [7]}]}), "reach outside"),
        (lambda: DepthLadder.from_json({"num_blocks": 4.0, "levels": [{"name": "a", "kept": [0]}]}), "not a ladder"),
        (lambda: DepthLadder.from_json({"num_blocks": 4, "levels": [{"name": 5, "kept": [0]}]}), "not a ladder"),
        (lambda: DepthLadder.from_json({"num_blocks": 4, "levels": [{"name": "../a", "kept": [0]}]}), "not allowed"),
        (lambda: DepthLadder.from_json({"schema_version": 2}), "schema_version 2"),
    ],
)
def test_ladders_that_cannot_be(build, message):
    with pytest.raises(MaskError, match=message):
        build()

"""Beam search: what it finds that greedy selection misses, what it measures, and how levels nest."""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.scores import BlockScores
from blockexport.errors import ScoresError
from blockexport.selection import select

Objective = Callable[[DepthMask], float]


def make_scores(num_blocks: int, protected: tuple[int, ...] = ()) -> BlockScores:
    raised = tuple(math.inf if i in protected else 0.0 for i in range(num_blocks))
    return BlockScores("given", raised, (0.0,) * num_blocks, protected)


def kept(ladder: DepthLadder) -> list[tuple[int, ...]]:
    return [level.kept for level in ladder.levels]


def rugged(mask: DepthMask) -> float:
    """Of no sum of blocks, so that combinations matter."""
    return math.sin(sum((i + 1) ** 3 for i in mask.kept))


def bait(mask: DepthMask) -> float:
    """Block 0 is missed least alone and most in company; blocks 1 and 2 are missed together no more than alone."""
    missing = set(mask.skipped)
    alone = 0.1 * (0 in missing) + 0.2 * bool(missing & {1, 2}) + 0.5 * (3 in missing)
    return alone + 1.0 * (0 in missing and len(missing) > 1)


def test_it_finds_a_combination_that_greedy_selection_cannot() -> None:
    scores = make_scores(4)
    greedy, beam = (select(scores, depths=[2], strategy=name, objective=bait) for name in ("greedy", "beam"))
    assert kept(greedy) == [(1, 3)]
    assert kept(beam) == [(0, 3)]
    best = min(bait(DepthMask.from_kept(pair, 4)) for pair in itertools.combinations(range(4), 2))
    assert bait(beam.levels[0].mask) == best < bait(greedy.levels[0].mask)


def test_without_a_depth_of_look_each_level_is_the_best_found_in_the_one_above() -> None:
    ladder = select(make_scores(4), depths=[4, 3, 2], strategy="beam", objective=bait)
    assert kept(ladder) == [(0, 1, 2, 3), (1, 2, 3), (1, 3)]
    assert ladder.notes[-1] == "removed in order, with the objective reached: 0 (0.1), 2 (1.3)"


def test_with_a_depth_of_look_levels_on_the_way_are_what_the_best_at_its_end_came_through() -> None:
    ladder = select(make_scores(4), depths=[4, 3, 2], strategy="beam", objective=bait, beam_depth=2)
    assert kept(ladder) == [(0, 1, 2, 3), (0, 1, 3), (0, 3)]
    assert ladder.notes == (
        "10 combinations measured, 3 kept at each size",
        "removed in order, with the objective reached: 2 (0.2), 1 (0.2)",
    )


@given(st.integers(2, 7), st.data())
def test_a_width_or_a_look_of_one_is_greedy(num_blocks: int, data: st.DataObject) -> None:
    protected = tuple(sorted(data.draw(st.sets(st.integers(0, num_blocks - 1), max_size=num_blocks - 1))))
    depths = data.draw(st.lists(st.integers(max(1, len(protected)), num_blocks), min_size=1, max_size=4))
    values = data.draw(st.lists(st.integers(0, 3), min_size=2**num_blocks, max_size=2**num_blocks))

    def objective(mask: DepthMask) -> float:
        # Few values, so that there are many ties.
        return float(values[sum(1 << i for i in mask.kept) - 1])

    scores = make_scores(num_blocks, protected)
    greedy = kept(select(scores, depths=depths, strategy="greedy", objective=objective))
    look = data.draw(st.none() | st.integers(1, num_blocks))
    width = data.draw(st.integers(1, 4))
    for options in ({"beam_width": 1, "beam_depth": look}, {"beam_width": width, "beam_depth": 1}):
        assert kept(select(scores, depths=depths, strategy="beam", objective=objective, **options)) == greedy


@pytest.mark.parametrize("look", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("width", [1, 2, 5, 100])
def test_no_combination_is_measured_twice_and_progress_ends_at_its_total(look: int | None, width: int) -> None:
    asked: list[DepthMask] = []
    steps: list[tuple[int, int]] = []

    def objective(mask: DepthMask) -> float:
        asked.append(mask)
        return rugged(mask)

    ladder = select(
        make_scores(6, (1,)),
        depths=[5, 2],
        strategy="beam",
        objective=objective,
        beam_width=width,
        beam_depth=look,
        on_progress=lambda *step: steps.append(step),
    )
    assert len(asked) == len(set(asked)) == len(steps)
    assert f"{len(asked)} combinations measured, {width} kept at each size" in ladder.notes
    done, totals = zip(*steps, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}


def test_a_beam_wide_enough_finds_the_best_of_all() -> None:
    ladder = select(make_scores(7, (2,)), depths=[3], strategy="beam", objective=rugged, beam_width=100)
    others = itertools.combinations([0, 1, 3, 4, 5, 6], 2)
    best = min((DepthMask.from_kept((2, *pair), 7) for pair in others), key=rugged)
    assert kept(ladder) == [best.kept]


def test_combinations_that_begin_alike_follow_one_another() -> None:
    """`models.objective` runs only what lies behind the first block that differs from the last combination's."""
    asked: list[DepthMask] = []

    def objective(mask: DepthMask) -> float:
        asked.append(mask)
        return rugged(mask)

    select(make_scores(5), depths=[3], strategy="beam", objective=objective)
    for size in (4, 3):
        flags = [mask.to_bools() for mask in asked if mask.depth == size]
        assert flags == sorted(flags, reverse=True)


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ScoresError, match="must be finite"):
        select(make_scores(3), depths=[1], strategy="beam", objective=lambda mask: math.nan)

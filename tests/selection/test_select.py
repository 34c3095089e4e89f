"""Every strategy: what it keeps, that levels nest, and what it refuses."""

import math
import subprocess
import sys
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.masks import DepthMask
from blockexport.core.scores import BlockScores
from blockexport.errors import BlockExportError, ConfigError, MaskError, ScoresError
from blockexport.selection import STRATEGIES, select


def make_scores(values, protected=(), **fields):
    raised = tuple(math.inf if i in protected else float(value) for i, value in enumerate(values))
    return BlockScores("given", raised, (0.0,) * len(values), tuple(protected), **fields)


def kept(ladder):
    return [level.kept for level in ladder.levels]


@st.composite
def score_sets(draw):
    values = draw(st.lists(st.integers(-3, 3), min_size=2, max_size=12))
    protected = draw(st.sets(st.integers(0, len(values) - 1), max_size=len(values) - 1))
    return make_scores(values, sorted(protected))


@given(score_sets(), st.data())
def test_levels_are_nested_deepest_first_and_hold_the_protected(scores, data):
    strategy = data.draw(st.sampled_from(STRATEGIES))
    if strategy == "threshold":
        thresholds = data.draw(st.lists(st.floats(-2, 2), min_size=1, max_size=5))
        min_depth = data.draw(st.integers(1, scores.num_blocks))
        ladder = select(scores, strategy=strategy, threshold=thresholds, min_depth=min_depth)
        assert min(level.depth for level in ladder.levels) >= min_depth
    else:
        allowed = st.integers(max(1, len(scores.protected)), scores.num_blocks)
        depths = data.draw(st.lists(allowed, min_size=1, max_size=5))
        # Not additive, so that measuring has something to find out.
        objective = (lambda mask: math.sin(sum(i * i for i in mask.kept))) if strategy in {"greedy", "beam"} else None
        ladder = select(scores, depths=depths, strategy=strategy, objective=objective)
        assert [level.depth for level in ladder.levels] == sorted(set(depths), reverse=True)
    assert ladder.strategy == strategy
    for deeper, shallower in combinations(ladder.levels, 2):
        assert set(shallower.kept) < set(deeper.kept)
    for level in ladder.levels:
        assert set(scores.protected) <= set(level.kept)


@given(score_sets(), st.data())
def test_top_k_keeps_nothing_worse_than_what_it_drops(scores, data):
    depth = data.draw(st.integers(max(1, len(scores.protected)), scores.num_blocks))
    mask = select(scores, depths=[depth]).levels[0].mask
    for inside in mask.kept:
        for outside in mask.skipped:
            better = scores.scores[inside] > scores.scores[outside]
            tie_to_the_earlier = scores.scores[inside] == scores.scores[outside] and inside < outside
            assert better or tie_to_the_earlier


def test_top_k():
    scores = make_scores([0.1, 0.9, 0.5, 0.5, -0.2, 0.7])
    assert kept(select(scores, depths=[6, 3, 0.5, 1])) == [(0, 1, 2, 3, 4, 5), (1, 2, 5), (1,)]
    assert select(scores, depths=[3, 0.5]).notes == ("depths 3, 0.5 are all 3 of 6 blocks and make one level",)
    assert kept(select(make_scores([0.1, 0.9, 0.5, 0.5], [0]), depths=[2])) == [(0, 1)]


def test_a_listed_block_is_protected_whatever_its_number():
    scores = BlockScores("given", (0.9, 0.8, -5.0), (0.0,) * 3, protected=(2,))
    assert kept(select(scores, depths=[1])) == [(2,)]


def test_sequential_keeps_the_first_and_the_protected():
    scores = make_scores([0, 0, 0, 9, 0, 0], [5])
    assert kept(select(scores, depths=[4, 2, 1], strategy="sequential")) == [(0, 1, 2, 5), (0, 5), (5,)]


@pytest.mark.parametrize(
    ("threshold", "expected", "note"),
    [
        (0.5, [(1, 2, 5)], None),
        ([0.05, 0.5], [(0, 1, 2, 3, 5), (1, 2, 5)], None),
        ([0.5, 0.4], [(1, 2, 5)], "threshold 0.5 keeps the same blocks as 0.4"),
        (-1.0, [(0, 1, 2, 3, 4, 5)], "threshold -1.0 keeps all 6 blocks"),
        (1.5, [(1,)], "threshold 1.5 keeps nothing by itself"),
        (1.0, [(1,)], None),
    ],
)
def test_threshold_is_a_share_of_the_maximum(threshold, expected, note):
    ladder = select(make_scores([0.1, 0.8, 0.5, 0.2, -0.3, 0.4]), strategy="threshold", threshold=threshold)
    assert kept(ladder) == expected
    assert [note in said for said in ladder.notes] == ([True] if note else [])


def test_threshold_looks_past_protected_blocks():
    """An infinite maximum would keep the protected blocks only, at any threshold."""
    ladder = select(make_scores([0, 0.8, 0.5, 0.1], [0]), strategy="threshold", threshold=0.5)
    assert kept(ladder) == [(0, 1, 2)]
    assert kept(select(make_scores([0, 1, 2], [0, 1, 2]), strategy="threshold", threshold=0.5)) == [(0, 1, 2)]


def test_threshold_fills_up_to_the_minimum_depth():
    scores = make_scores([0.1, 0.8, 0.5, 0.2])
    few = select(scores, strategy="threshold", threshold=0.9, min_depth=3)
    assert (kept(few), len(few.notes)) == ([(1, 2, 3)], 1)
    assert "fewer than min_depth" in few.notes[0]


def test_threshold_of_scores_that_are_all_negative_keeps_nothing_and_says_so():
    ladder = select(make_scores([-0.3, -0.1, -0.2]), strategy="threshold", threshold=0.5)
    assert kept(ladder) == [(1,)]
    assert "keeps nothing" in ladder.notes[0]


def test_thresholds_may_come_as_depths():
    scores = make_scores([0.1, 0.8, 0.5])
    assert kept(select(scores, depths=[0.5], strategy="threshold")) == [(1, 2)]
    both = select(scores, depths=[1], strategy="threshold", threshold=0.5)
    assert kept(both) == [(1, 2)]
    assert both.notes == ("depths are not used by strategy 'threshold'",)


def test_greedy_removes_what_is_missed_least_given_what_is_gone():
    """Blocks 1 and 2 stand in for each other: neither is missed alone, both together are."""

    def objective(mask):
        missing = set(mask.skipped)
        return 0.3 * (0 in missing) + 0.1 * (3 in missing) + 1.0 * ({1, 2} <= missing)

    scores = make_scores([9, 9, 9, 9])
    ladder = select(scores, depths=[4, 3, 2, 1], strategy="greedy", objective=objective)
    # 2 before 1, for of equals the later goes.
    assert kept(ladder) == [(0, 1, 2, 3), (0, 1, 3), (0, 1), (1,)]
    assert ladder.notes == ("removed in order, with the objective reached: 2 (0), 3 (0.1), 0 (0.4)",)
    guarded = select(make_scores([9, 9, 9, 9], [2, 3]), depths=[2], strategy="greedy", objective=objective)
    assert kept(guarded) == [(2, 3)]


def test_greedy_asks_from_the_last_block_on_and_counts():
    asked, steps = [], []

    def objective(mask):
        asked.append(mask)
        return float(len(mask.skipped) + 0.1 * (0 in mask.skipped))

    scores = make_scores([1, 1, 1, 1], [1])
    select(scores, depths=[2], strategy="greedy", objective=objective, on_progress=lambda *step: steps.append(step))
    full = DepthMask.full(4)
    rest = full.without(3)
    assert asked == [full.without(3), full.without(2), full.without(0), rest.without(2), rest.without(0)]
    assert steps == [(i, 5) for i in range(1, 6)]


def test_greedy_needs_no_evaluation_for_the_full_depth():
    ladder = select(make_scores([1, 1]), depths=[2], strategy="greedy", objective=lambda mask: 1 / 0)
    assert kept(ladder) == [(0, 1)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_greedy_refuses_an_objective_that_is_not_finite(value):
    with pytest.raises(ScoresError, match="must be finite"):
        select(make_scores([1, 1]), depths=[1], strategy="greedy", objective=lambda mask: value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"depths": [5]}, MaskError, "depth 5 is outside 1..4"),
        ({"depths": None}, MaskError, "no depths"),
        ({"depths": [1]}, MaskError, r"cannot hold the 2 protected blocks \[0, 3\]"),
        ({"depths": [3, 2], "min_depth": 3}, MaskError, "depth 2 is below min_depth 3"),
        ({"depths": [4], "min_depth": 5}, MaskError, "min_depth is 5"),
        ({"depths": [4], "min_depth": 0}, MaskError, "min_depth is 0"),
        ({"strategy": "threshold", "threshold": 0.5, "min_depth": 5}, MaskError, "min_depth is 5"),
        ({"depths": [2], "strategy": "random"}, ConfigError, "unknown strategy 'random'; choose one of top_k"),
        ({"depths": [2], "threshold": 0.5}, ConfigError, "takes no threshold"),
        ({"strategy": "threshold"}, ConfigError, "needs a threshold"),
        ({"strategy": "threshold", "threshold": []}, ConfigError, "at least one finite number"),
        ({"strategy": "threshold", "threshold": math.nan}, ConfigError, "at least one finite number"),
        (
            {"depths": [2], "strategy": "greedy"},
            ConfigError,
            "'greedy' measures .* give model and data, or an objective",
        ),
        ({"depths": [2], "strategy": "beam"}, ConfigError, "'beam' measures .* give model and data, or an objective"),
        ({"depths": [2], "strategy": "beam", "beam_width": 0}, ConfigError, "beam_width is 0; give at least 1"),
        ({"depths": [2], "strategy": "beam", "beam_depth": 0}, ConfigError, "beam_depth is 0; give at least 1"),
        ({"depths": [2], "beam_width": 2}, ConfigError, "'top_k' takes no beam_width; leave it out"),
    ],
)
def test_bad_arguments(options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        select(make_scores([1, 2, 3, 4], [0, 3]), **options)
    assert isinstance(caught.value, BlockExportError)


def test_selecting_from_a_score_file_needs_no_torch():
    code = "import sys, blockexport.selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

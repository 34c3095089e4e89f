"""Scores and the shapes of score files."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.jsonio import dump_json
from blockexport.core.scores import BlockScores
from blockexport.errors import ScoresError


@st.composite
def any_scores(draw):
    values = draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
    protected = draw(st.sets(st.integers(0, len(values) - 1)))
    scores = tuple(math.inf if i in protected else value for i, value in enumerate(values))
    return BlockScores(
        "loss_drop", scores, (0.5,) * len(values), tuple(sorted(protected)), "model", "data", draw(st.integers()), 7
    )


@given(any_scores())
def test_scores_survive_their_file_to_the_last_bit(scores):
    assert BlockScores.from_json(json.loads(dump_json(scores.to_json()))) == scores


@given(any_scores())
def test_the_file_has_no_infinity_that_strict_parsers_refuse(scores):
    def refuse(constant):
        raise AssertionError(constant)

    json.loads(dump_json(scores.to_json()), parse_constant=refuse)


@pytest.mark.parametrize("key", ["merged_scores", "train_scores", "importance_scores", None])
def test_score_maps_of_the_seed_repository(key):
    table = {"0": 0.56, "2": 0.004, "1": 0.08}
    scores = BlockScores.from_json({key: table} if key else table, num_blocks=3)
    assert scores.scores == (0.56, 0.08, 0.004)
    assert (scores.method, scores.protected, scores.model) == ("imported", (), "")


def test_blocks_that_a_map_leaves_out_are_protected():
    """The seed's published file covers blocks 1 to 14 of 16: 0 and 15 were never dropped."""
    scores = BlockScores.from_json({"merged_scores": {str(i): 0.01 * i for i in range(1, 15)}}, num_blocks=16)
    assert scores.protected == (0, 15)
    assert (scores.scores[0], scores.scores[15]) == (math.inf, math.inf)
    assert scores.scores[14] == pytest.approx(0.14)
    assert BlockScores.from_json({"1": 0.5}).protected == (0,)


OWN = {"method": "loss_drop", "scores": [1.0, 2.0], "stderr": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "holds a JSON object, got list"),
        (None, "got NoneType"),
        ({}, "no scores given"),
        ({"a": 1.0}, "from block index to number"),
        ({"0": "high"}, "from block index to number"),
        ({"-1": 0.5, "0": 0.5}, "names block -1"),
        ({"merged_scores": {"0": None}}, "from block index to number"),
        ({"method": "loss_drop"}, "not a score file"),
        (OWN | {"colour": "red"}, "not a score file"),
        (OWN | {"scores": None}, "not a score file"),
        (OWN | {"scores": ["high", "low"]}, "not a score file"),
        (OWN | {"protected": [math.inf]}, "not a score file"),
        (OWN | {"stderr": [0.0]}, "2 scores but 1 standard errors"),
        (OWN | {"stderr": [0.0, math.nan]}, "must be finite and not negative"),
        (OWN | {"stderr": [0.0, -1.0]}, "must be finite and not negative"),
        (OWN | {"schema_version": 99}, "schema_version 99"),
        ({"1000000000": 0.5}, "names block 1000000000"),
        (OWN | {"scores": [], "stderr": []}, "no scores given"),
        (OWN | {"scores": [1.0, math.nan]}, r"blocks \[1\] are NaN"),
        (OWN | {"scores": [1.0, math.inf]}, r"blocks \[1\] score infinity but are not protected"),
        (OWN | {"protected": [2]}, r"reach outside 0\.\.1"),
        (OWN | {"protected": [-1]}, r"reach outside 0\.\.1"),
    ],
)
def test_score_files_that_cannot_be(value, message):
    with pytest.raises(ScoresError, match=message):
        BlockScores.from_json(value)


def test_scores_of_a_model_of_another_size():
    with pytest.raises(ScoresError, match="scores for 2 blocks given, but the model has 3"):
        BlockScores.from_json(OWN, num_blocks=3)
    with pytest.raises(ScoresError, match="scores for 5 blocks given, but the model has 3"):
        BlockScores.from_json({"4": 0.5}, num_blocks=3)

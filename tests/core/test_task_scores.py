import math

import pytest

from blockexport.core.scores import BlockScores
from blockexport.core.task_scores import Agreement, TaskScores
from blockexport.errors import ScoresError

UP, DOWN, FLAT = (0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1), (0.5, 0.5, 0.5, 0.5)
ZERO = (0.0,) * 4


def scores_of(**fields):
    tasks = (
        TaskScores("count", DOWN, ZERO, 3, (DOWN, UP)),
        TaskScores("read", UP, ZERO, 5, (UP, UP)),
        TaskScores("sum", FLAT, ZERO, 1),
    )
    return BlockScores("loss_drop", UP, ZERO, num_samples=9, **({"tasks": tasks, "halves": (UP, DOWN)} | fields))


def test_correlations_between_halves_and_between_tasks():
    found = scores_of().agreement
    assert found.halves == pytest.approx(-1)
    count, read, even = found.tasks.values()
    assert (count.halves, count.merged) == pytest.approx((-1, -1))
    assert count.others == pytest.approx({"read": -1, "sum": None})
    assert (read.halves, read.merged) == pytest.approx((1, 1))
    assert read.others == pytest.approx({"count": -1, "sum": None})
    assert (even.halves, even.merged, even.others) == (None, None, {"count": None, "read": None})


def test_protected_blocks_have_no_rank():
    guarded = (math.inf, 0.2, 0.3, 0.4)
    other = (math.inf, 0.3, 0.2, 0.1)
    scores = BlockScores("m", guarded, ZERO, (0,), halves=(guarded, other))
    assert scores.agreement == Agreement(pytest.approx(-1), {})


def test_correlations_are_in_the_file_and_scores_survive_it():
    scores = scores_of()
    value = scores.to_json()
    assert value["spearman"]["halves"] == pytest.approx(-1)
    assert value["spearman"]["tasks"]["count"]["others"] == pytest.approx({"read": -1, "sum": None})
    assert BlockScores.from_json(value) == scores
    plain = BlockScores("m", UP, ZERO).to_json()
    assert not {"tasks", "halves", "spearman"} & plain.keys()


def test_one_task_alone():
    alone = scores_of().of_task("count")
    assert (alone.scores, alone.num_samples, alone.tasks, alone.halves) == (DOWN, 3, (), (DOWN, UP))
    with pytest.raises(ScoresError, match="no scores of task 'x'; these scores tell apart: count, read, sum"):
        scores_of().of_task("x")
    with pytest.raises(ScoresError, match="tell apart: none"):
        scores_of(tasks=()).of_task("count")


@pytest.mark.parametrize(
    "fields",
    [
        {"halves": ((0.1,), (0.2,))},
        {"tasks": (TaskScores("t", UP, (0.0,), 1),)},
        {"tasks": (TaskScores("t", (math.nan, *UP[1:]), ZERO, 1),)},
    ],
)
def test_rows_of_another_length_are_refused(fields):
    with pytest.raises(ScoresError, match="one number for each of 4 blocks"):
        scores_of(**fields)


def test_one_half_is_no_score_file():
    value = scores_of().to_json()
    with pytest.raises(ScoresError, match="not a score file"):
        BlockScores.from_json(value | {"halves": value["halves"][:1]})

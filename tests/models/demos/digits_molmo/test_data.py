from collections import Counter

import numpy as np
import pytest

from blockexport.core.questions import judge
from blockexport.models.demos.digits_molmo import data
from blockexport.models.demos.digits_molmo.recipe import GEOMETRY
from blockexport.models.demos.digits_vit.data import read_split
from blockexport.processing.layout import select_tiling


def test_the_same_seed_draws_the_same_pictures():
    first, again, other = (data.SceneSource("train", seed, vary=True) for seed in (1, 1, 2))
    pairs = [(first.draw(), again.draw(), other.draw()) for _ in range(5)]
    for a, b, _ in pairs:
        np.testing.assert_array_equal(a.picture, b.picture)
        assert a.digits == b.digits
    assert any(a.picture.shape != c.picture.shape or (a.picture != c.picture).any() for a, _, c in pairs)


def test_splits_draw_from_their_own_digits():
    """Each split's pictures are made of its digits alone, and no digit is in two splits."""
    seen = {}
    for split in ("train", "selection", "test"):
        source = data.SceneSource(split, 0)
        seen[split] = {digit.tobytes() for digit in source._digits}
        assert len(source._digits) == len(read_split(split)[1])
    # The data themselves hold no picture twice across splits.
    assert not seen["train"] & seen["selection"]
    assert not (seen["train"] | seen["selection"]) & seen["test"]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_digit_is_drawn_in_its_place(count):
    source = data.SceneSource("selection", 3)
    for _ in range(20):
        scene = source.draw((count,))
        assert len(scene.digits) == count
        width = scene.picture.shape[1]
        for cell in np.split(scene.picture[:, :, 0], [round(width * i / count) for i in range(1, count)], axis=1):
            assert cell.max() > 60


def test_pictures_fill_the_crops_of_the_demo_without_being_resized():
    source = data.SceneSource("selection", 4)
    sizes = set()
    for _ in range(60):
        height, width = source.draw().picture.shape[:2]
        tiling = select_tiling(height, width, GEOMETRY)
        assert [n * GEOMETRY.window_pixels + GEOMETRY.margin_pixels for n in tiling] == [height, width]
        sizes.add((height, width))
    assert len(sizes) > 3


@pytest.mark.parametrize(
    ("task", "digits", "answer"),
    [
        ("digit", (7,), "7"),
        ("parity", (7,), "odd"),
        ("parity", (0,), "even"),
        ("larger", (5,), "no"),
        ("larger", (6,), "yes"),
        ("sum", (9, 8), "17"),
        ("count", (1, 1, 1), "3"),
        ("read", (3, 0, 5), "3 0 5"),
    ],
)
def test_answers(task, digits, answer):
    question = data.Scene(np.zeros((24, 24, 3), np.uint8), digits).question(task)
    assert question.answers == (answer,)
    assert judge(question, f" {answer}") == 1


def test_questions_come_task_by_task_and_can_be_answered():
    asked = list(data.questions("test", ("digit", "sum", "count"), 30, 1))
    assert [question.task for question in asked] == ["digit"] * 30 + ["sum"] * 30 + ["count"] * 30
    again = list(data.questions("test", ("sum",), 30, 1))
    for ours, theirs in zip(asked[30:60], again, strict=True):
        np.testing.assert_array_equal(ours.picture, theirs.picture)
    assert len(Counter(question.answers for question in asked[:30])) > 5


def test_varied_pictures_differ_from_plain_ones():
    plain, varied = (data.SceneSource("train", 1, vary=vary).draw((1,)) for vary in (False, True))
    assert plain.digits == varied.digits
    assert (plain.picture != varied.picture).any()

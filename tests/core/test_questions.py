import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.questions import PictureQuestion, judge, normalise
from blockexport.errors import DataError

PICTURE = np.zeros((1, 1, 3), np.uint8)


def ask(*answers, metric="exact_match", choices=()):
    return PictureQuestion(PICTURE, "What?", answers, "task", metric, choices)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (" The  Dog. ", "dog"),
        ("two", "2"),
        ("3.5", "3.5"),
        ("1,000 cats!", "1,000 cats"),
        ("it's", "it's"),
        ("yes, sir", "yes sir"),
        ("12:30", "12:30"),
        ("", ""),
    ],
)
def test_answers_are_compared_in_their_plain_form(text, plain):
    assert normalise(text) == plain


@given(st.text())
def test_the_plain_form_is_final(text):
    assert normalise(normalise(text)) == normalise(text)


def test_exact_match_takes_any_of_the_answers():
    assert judge(ask("7", "seven"), " Seven.") == 1
    assert judge(ask("7"), "17") == 0


def test_a_choice_is_named_by_its_text_or_its_letter():
    question = ask("cat", metric="multiple_choice", choices=("dog", "cat"))
    assert [judge(question, reply) for reply in ("cat", "B.", "dog", "A", "")] == [1, 1, 0, 0, 0]


@given(st.lists(st.sampled_from(["red", "blue"]), min_size=2, max_size=10))
def test_vqa_accuracy_is_the_mean_over_the_others(answers):
    """The definition, person by person: of the others, three who agree are full marks."""
    others = itertools.combinations(answers, len(answers) - 1)
    enough = min(3, len(answers) - 1)
    expected = np.mean([min(list(rest).count("red") / enough, 1) for rest in others])
    assert judge(ask(*answers, metric="vqa_accuracy"), "red") == pytest.approx(expected)


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_answers(agree, accuracy):
    answers = ["red"] * agree + [f"other{i}" for i in range(10 - agree)]
    assert judge(ask(*answers, metric="vqa_accuracy"), "Red") == pytest.approx(accuracy)


def test_a_single_answer_is_all_there_is_to_agree_with():
    assert judge(ask("red", metric="vqa_accuracy"), "red") == 1
    assert judge(ask("red", metric="vqa_accuracy"), "blue") == 0


def test_questions_without_sense_are_refused():
    with pytest.raises(DataError, match="give a question"):
        PictureQuestion(PICTURE, " ", ("a",), "task")
    with pytest.raises(DataError, match="at least one answer"):
        ask()
    with pytest.raises(DataError, match="none of its choices"):
        ask("c", metric="multiple_choice", choices=("a", "b"))
    with pytest.raises(DataError, match="no metric 'bleu' for questions; take one of exact_match, "):
        ask("c", metric="bleu")

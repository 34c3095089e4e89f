"""Questions about pictures, and how a reply to one is judged."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from blockexport.errors import DataError

AnswerMetric = Literal["exact_match", "multiple_choice", "vqa_accuracy"]

_ARTICLES = {"a", "an", "the"}
_NUMBERS = dict(
    zip(
        ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("0", *map(str, range(11))),
        strict=True,
    )
)
_VQA_WITNESSES = 3


@dataclass(frozen=True, slots=True, eq=False)
class PictureQuestion:
    """One question about one picture.

    Attributes:
        picture: (height, width, 3) uint8.
        question: what is asked.
        answers: the right answer, or for `vqa_accuracy` the answer of each person who was asked.
        task: the group it is reported under.
        metric: how a reply is judged.
        choices: for `multiple_choice`, all answers to choose from.
    """

    picture: NDArray[np.uint8]
    question: str
    answers: tuple[str, ...]
    task: str
    metric: AnswerMetric = "exact_match"
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.strip() or not self.answers:
            msg = f"question {self.question!r} has answers {self.answers}; give a question and at least one answer"
            raise DataError(msg)
        if self.metric not in get_args(AnswerMetric):
            msg = f"no metric {self.metric!r} for questions; take one of {', '.join(get_args(AnswerMetric))}"
            raise DataError(msg)
        if self.metric == "multiple_choice" and self.answers[0] not in self.choices:
            msg = f"the answer {self.answers[0]!r} to {self.question!r} is none of its choices {self.choices}; add it"
            raise DataError(msg)


def judge(question: PictureQuestion, reply: str) -> float:
    """Score of a reply, from 0 to 1.

    `exact_match` asks for one of the answers and `multiple_choice` for the right one, named by its text or letter.
    `vqa_accuracy` (Antol et al., "VQA", arXiv:1505.00468) is the mean, over leaving out one person at a time, of the
    share of three others who gave that answer.
    """
    given = normalise(reply)
    known = [normalise(answer) for answer in question.answers]
    if question.metric == "exact_match":
        return float(given in known)
    if question.metric == "multiple_choice":
        right = question.choices.index(question.answers[0])
        return float(given in {known[0], chr(ord("a") + right)})
    matches = [answer == given for answer in known]
    if len(known) == 1:
        return float(matches[0])
    others = sum(matches) - np.array(matches)
    return float(np.minimum(others / min(_VQA_WITNESSES, len(known) - 1), 1.0).mean())


def normalise(text: str) -> str:
    """Lower case, numbers as digits, without articles, punctuation (but in numbers) and surplus blanks."""
    words = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,:'-]", " ", text.lower()).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)

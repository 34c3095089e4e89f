"""Pictures of handwritten digits in a row, and questions about them.

| task   | digits | question              | answer       |
|--------|--------|-----------------------|--------------|
| digit  | 1      | `Which digit?`        | `7`          |
| parity | 1      | `Even or odd?`        | `odd`        |
| larger | 1      | `Larger than five?`   | `yes`        |
| sum    | 2      | `What is the sum?`    | `12`         |
| count  | 1 to 4 | `How many digits?`    | `2`          |
| read   | 2 to 4 | `Which digits?`       | `7 5`        |

The digits are those of `demo:digits-vit`, in its fixed split: no digit that a model is judged on was ever trained on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blockexport.core.questions import PictureQuestion
from blockexport.models.demos.digits_vit.data import Split, read_split

_DIGIT_SIDE = 8
_HEIGHTS = (24, 32)
_WIDTHS = (24, 32, 40, 48)
# Sides at which a digit is drawn, in pixels. Its corners lie on a grid, that of the patches of the demo model: a small
# tower takes several times as long to learn digits that lie anywhere.
_SIDES = (12, 16)
_GRID = 4
# How often a picture shows one, two, three or four digits.
_COUNTS = (0.4, 0.4, 0.1, 0.1)
# What training pictures are varied by: a turn in radians, a shear, and a factor on the strength of the ink.
_MAX_TURN, _MAX_SHEAR, _MIN_INK = 0.2, 0.15, 0.7


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of question: to which pictures it can be put, and its answer there."""

    question: str
    counts: tuple[int, ...]
    answer: Callable[[Sequence[int]], str]


TASKS = {
    "digit": Task("Which digit?", (1,), lambda digits: str(digits[0])),
    "parity": Task("Even or odd?", (1,), lambda digits: "odd" if digits[0] % 2 else "even"),
    "larger": Task("Larger than five?", (1,), lambda digits: "yes" if digits[0] > 5 else "no"),
    "sum": Task("What is the sum?", (2,), lambda digits: str(sum(digits))),
    "count": Task("How many digits?", (1, 2, 3, 4), lambda digits: str(len(digits))),
    "read": Task("Which digits?", (2, 3, 4), lambda digits: " ".join(map(str, digits))),
}


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture (height, width, 3) and the digits in it from left to right."""

    picture: NDArray[np.uint8]
    digits: tuple[int, ...]

    def question(self, task: str) -> PictureQuestion:
        """A question of one task about this picture."""
        known = TASKS[task]
        return PictureQuestion(self.picture, known.question, (known.answer(self.digits),), task)


class SceneSource:
    """Draws pictures from the digits of one split; the same for the same seed.

    Args:
        split: whose digits are shown.
        seed: decides everything else.
        vary: turn, shear and fade digits, for training.
    """

    def __init__(self, split: Split, seed: int, *, vary: bool = False) -> None:
        pixels, self._labels = read_split(split)
        self._digits = ((pixels[:, 0] + 1) * 127.5).round().astype(np.uint8)
        self._random = np.random.default_rng([seed, *split.encode()])
        self._vary = vary

    def draw(self, counts: Sequence[int] = (1, 2, 3, 4), size: tuple[int, int] | None = None) -> Scene:
        """The next picture, with one of the given numbers of digits, of any size or of the given (height, width)."""
        shares = np.array([_COUNTS[count - 1] for count in counts])
        count = int(self._random.choice(counts, p=shares / shares.sum()))
        chosen = self._random.integers(len(self._labels), size=count)
        height, width = self._draw_size(count) if size is None else size
        canvas = np.zeros((height, width), np.uint8)
        for place, index in enumerate(chosen):
            drawn = self._draw_digit(self._digits[index], (height, width), place, count)
            canvas = np.maximum(canvas, drawn)
        return Scene(np.repeat(canvas[:, :, None], 3, axis=2), tuple(self._labels[chosen].tolist()))

    def _draw_size(self, count: int) -> tuple[int, int]:
        width = int(self._random.choice([w for w in _WIDTHS if w >= count * min(_SIDES)]))
        # A high and wide picture would have more crops than the geometry of the demo has.
        height = int(self._random.choice(_HEIGHTS)) if width <= max(_HEIGHTS) else min(_HEIGHTS)
        return height, width

    def _draw_digit(self, digit: NDArray[np.uint8], size: tuple[int, int], place: int, count: int) -> NDArray[np.uint8]:
        """One digit on an empty canvas of (height, width), anywhere in its cell of the row."""
        height, width = size
        cell = width / count
        side = int(self._random.choice([side for side in _SIDES if side <= cell]))
        play = np.array([cell - side, height - side])
        corner = np.array([place * cell, 0.0]) + self._random.uniform(0, play)
        centre = np.floor(corner / _GRID + 0.5) * _GRID + side / 2
        turn, shear, ink = 0.0, 0.0, 1.0
        if self._vary:
            turn = self._random.uniform(-_MAX_TURN, _MAX_TURN)
            shear = self._random.uniform(-_MAX_SHEAR, _MAX_SHEAR)
            ink = self._random.uniform(_MIN_INK, 1.0)
        # From a place on the canvas to one in the digit, as Pillow asks for.
        turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        matrix = turned @ np.array([[1.0, shear], [0.0, 1.0]]) * (_DIGIT_SIDE / side)
        offset = _DIGIT_SIDE / 2 - matrix @ centre
        coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
        image = Image.fromarray(digit)
        drawn = image.transform((width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        return (np.asarray(drawn) * ink).round().astype(np.uint8)


def questions(split: Split, tasks: Sequence[str], num_questions: int, seed: int) -> Iterator[PictureQuestion]:
    """Questions of each task, about a picture of its own each, the same for the same seed."""
    for task in tasks:
        source = SceneSource(split, seed + list(TASKS).index(task))
        for _ in range(num_questions):
            yield source.draw(TASKS[task].counts).question(task)

"""Questions about pictures, as a user writes them down and as the demo has them."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexport.core.data import Sample
from blockexport.core.model import ModelSpec
from blockexport.core.questions import PictureQuestion
from blockexport.errors import DataError

if TYPE_CHECKING:
    from blockexport.processing.processor import MolmoProcessor


class QuestionReader:
    """Makes samples of one model from questions; its processor is read when the first one comes.

    Args:
        spec: the model that is asked.
        tokenizer_dir: its folder.
    """

    def __init__(self, spec: ModelSpec, tokenizer_dir: Path | None) -> None:
        self._spec = spec
        self._folder = tokenizer_dir

    @cached_property
    def _processor(self) -> "MolmoProcessor":
        if self._spec.vision is None:
            msg = f"{self._spec.name} reads no pictures; leave `image` out, or take a model that does"
            raise DataError(msg)
        if self._folder is None:
            msg = f"{self._spec.name} has no tokenizer.json, which questions need; add it to the model folder"
            raise DataError(msg)
        from blockexport.processing.processor import MolmoProcessor  # noqa: PLC0415  (Pillow is not always installed)

        return MolmoProcessor.from_folder(self._folder)

    def sample(self, question: PictureQuestion) -> Sample:
        """One question as the model takes it.

        Raises:
            DataError: the model reads no pictures, or cannot be asked so.
            RequestError: the picture cannot be processed.
        """
        processor = self._processor
        from blockexport.processing.samples import question_sample  # noqa: PLC0415  (as above)

        return question_sample(question, processor)

    def read(self, entry: dict[str, Any], folder: Path) -> Sample:
        """One question from an object of a file.

        Args:
            entry: `image` (a path, relative to the file), `prompt`, and `answer` or `answers`; optionally `choices`,
                `task` and `metric`, which is `multiple_choice` when there are choices and else `exact_match`.
            folder: where the file lies.

        Raises:
            DataError: as for `sample`, or the question has no sense.
            RequestError: the picture cannot be read.
            KeyError: something is missing.
        """
        from blockexport.processing.pictures import read_picture  # noqa: PLC0415  (as above)

        choices = tuple(map(str, entry.get("choices", ())))
        question = PictureQuestion(
            picture=read_picture(folder / entry["image"]),
            question=entry["prompt"],
            answers=tuple(map(str, entry["answers"])) if "answers" in entry else (str(entry["answer"]),),
            task=entry.get("task", "answers"),
            metric=entry.get("metric", "multiple_choice" if choices else "exact_match"),
            choices=choices,
        )
        return self.sample(question)

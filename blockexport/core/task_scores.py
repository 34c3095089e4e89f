"""Importance per block on one task, and how far tasks agree."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from blockexport.core.rank import spearman

Halves = tuple[tuple[float, ...], ...]
"""Scores from either half of the samples; empty when there are too few."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Importance per block on the samples of one task.

    Attributes:
        name: the task.
        scores: one per block; +inf for protected blocks.
        stderr: standard error of each score.
        num_samples: samples each score rests on.
        halves: see `Halves`.
    """

    name: str
    scores: tuple[float, ...]
    stderr: tuple[float, ...]
    num_samples: int
    halves: Halves = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read an entry of a score file."""
        rows = {key: tuple(float(x) for x in value[key]) for key in ("scores", "stderr")}
        halves = read_halves(value.get("halves", ()))
        return cls(str(value["name"]), **rows, num_samples=int(value["num_samples"]), halves=halves)


def read_halves(value: Sequence[Sequence[float]]) -> Halves:
    """Two rows of scores, or none, from a score file.

    Raises:
        ValueError: another number of rows.
    """
    halves = tuple(tuple(float(x) for x in half) for half in value)
    if len(halves) not in {0, 2}:
        msg = f"{len(halves)} halves"
        raise ValueError(msg)
    return halves


@dataclass(frozen=True, slots=True)
class TaskAgreement:
    """Spearman rank correlations of one task's scores; None where one has no meaning.

    Attributes:
        halves: between the scores from either half of the task's samples.
        merged: with the scores of all samples.
        others: with those of each other task.
    """

    halves: float | None
    merged: float | None
    others: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Spearman rank correlations over the blocks that were measured; None where one has no meaning.

    Attributes:
        halves: between the scores from either half of the samples: what is missing to 1 is noise.
        tasks: of each task, by name; empty for data of one task. What a task's correlation with another lacks beside
            that of its own halves says that the one's ranking does not serve the other.
    """

    halves: float | None
    tasks: dict[str, TaskAgreement]

    @classmethod
    def of(cls, blocks: Sequence[int], merged: TaskScores, tasks: Sequence[TaskScores]) -> Self:
        """The correlations of some scores.

        Args:
            blocks: those that were measured.
            merged: of all samples.
            tasks: of each task, when there are several.
        """

        def correlate(first: Sequence[float], second: Sequence[float]) -> float | None:
            return spearman([first[i] for i in blocks], [second[i] for i in blocks])

        def between_halves(of: TaskScores) -> float | None:
            return correlate(*of.halves) if of.halves else None

        found = {
            task.name: TaskAgreement(
                halves=between_halves(task),
                merged=correlate(task.scores, merged.scores),
                others={other.name: correlate(task.scores, other.scores) for other in tasks if other is not task},
            )
            for task in tasks
        }
        return cls(between_halves(merged), found)

    def to_json(self) -> dict[str, Any]:
        """The correlations as a score file holds them."""
        return asdict(self)

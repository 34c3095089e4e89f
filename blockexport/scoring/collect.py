"""What a finished run has measured, as scores."""

import math
from collections.abc import Sequence

from blockexport.core.scores import BlockScores
from blockexport.core.task_scores import Halves, TaskScores
from blockexport.scoring.moments import Moments
from blockexport.scoring.progress import Progress


def collect_scores(progress: Progress, protected: tuple[int, ...]) -> BlockScores:
    """Scores of all samples, of each task if there are several, and of either half of each.

    Args:
        progress: of a run that is finished.
        protected: blocks that were not measured.
    """

    def scores_of(moments: Sequence[Moments]) -> tuple[float, ...]:
        return tuple(math.inf if i in protected else m.mean for i, m in enumerate(moments))

    def halves_of(tasks: Sequence[str]) -> Halves:
        halves = [[progress.parts[task, half] for task in tasks if (task, half) in progress.parts] for half in (0, 1)]
        return tuple(scores_of(_merged(parts)) for parts in halves) if all(halves) else ()

    def of_task(name: str) -> TaskScores:
        moments = _merged([found for (task, _half), found in progress.parts.items() if task == name])
        stderr = tuple(m.stderr for m in moments)
        return TaskScores(name, scores_of(moments), stderr, max(m.count for m in moments), halves_of([name]))

    identity = progress.identity
    tasks = sorted({task for task, _half in progress.parts})
    return BlockScores(
        method=identity["method"],
        scores=scores_of(progress.moments),
        stderr=tuple(m.stderr for m in progress.moments),
        protected=protected,
        model=identity["model"],
        data=identity["data"],
        seed=identity["seed"],
        num_samples=identity["num_samples"],
        tasks=tuple(map(of_task, tasks)) if len(tasks) > 1 else (),
        halves=halves_of(tasks),
    )


def _merged(parts: Sequence[Sequence[Moments]]) -> list[Moments]:
    """What is known of each block from several parts of the data."""
    together = [Moments() for _ in parts[0]]
    for part in parts:
        for moments, found in zip(together, part, strict=True):
            moments.merge(found)
    return together

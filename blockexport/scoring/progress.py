"""How far a scoring run has come, on disk, so that a killed run goes on where it was."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.core.jsonio import dump_json, read_json, write_atomically
from blockexport.errors import ScoresError
from blockexport.scoring.moments import Moments
from blockexport.scoring.parts import Part

ProgressCallback = Callable[[int, int], None]


@dataclass(slots=True)
class Progress:
    """The steps done and what they have measured.

    Attributes:
        identity: what the run computes; a file of another identity is not continued.
        total: steps of the whole run.
        moments: one per block, over all samples.
        parts: the same over the samples of each part of the data.
        done: steps finished, in the run's fixed order.
        path: where to keep all this; nowhere when None.
        on_progress: told (done, total) after each step, and once before the first.
    """

    identity: dict[str, Any]
    total: int
    moments: list[Moments]
    parts: dict[Part, list[Moments]] = field(default_factory=dict)
    done: int = 0
    path: Path | None = None
    on_progress: ProgressCallback | None = None

    @classmethod
    def start(
        cls,
        identity: dict[str, Any],
        num_blocks: int,
        total: int,
        path: Path | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Self:
        """Begin, or continue what `path` holds.

        Raises:
            ScoresError: `path` holds another run, or something else altogether.
        """
        progress = cls(identity, total, _no_moments(num_blocks), path=path, on_progress=on_progress)
        if path is not None and path.exists():
            progress._restore(path)
        progress._report()
        return progress

    def add(self, block: int, values: NDArray[np.float64], parts: Sequence[Part] = ()) -> None:
        """Take in what some samples say of a block.

        Args:
            block: which one.
            values: (samples,).
            parts: of each sample; empty when the values are of no single samples.
        """
        self.moments[block].add(values)
        for part in dict.fromkeys(parts):
            chosen = values[[own == part for own in parts]]
            self.parts.setdefault(part, _no_moments(len(self.moments)))[block].add(chosen)

    def advance(self) -> None:
        """Count one step as done and write that down."""
        self.done += 1
        if self.path is not None:
            state = {
                "identity": self.identity,
                "done": self.done,
                "moments": [asdict(m) for m in self.moments],
                "parts": [[*part, [asdict(m) for m in moments]] for part, moments in self.parts.items()],
            }
            write_atomically(self.path, dump_json(state))
        self._report()

    def finish(self) -> None:
        """Remove the file: there is nothing left to continue."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)

    def _restore(self, path: Path) -> None:
        state = read_json(path)
        try:
            theirs = dict(state["identity"])
            done = int(state["done"])
            moments = _read_moments(state["moments"])
            parts = {(str(task), int(half)): _read_moments(entries) for task, half, entries in state["parts"]}
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path} is not the file of an unfinished scoring run; delete it or choose another resume path"
            raise ScoresError(msg) from error
        if theirs != self.identity:
            names = sorted(theirs.keys() | self.identity.keys())
            differing = [name for name in names if theirs.get(name) != self.identity.get(name)]
            listed = ", ".join(f"{name} {theirs.get(name)!r} (now {self.identity.get(name)!r})" for name in differing)
            msg = f"{path} belongs to an unfinished run with {listed}; delete it or choose another resume path"
            raise ScoresError(msg)
        sizes = {len(moments), *map(len, parts.values())}
        if sizes != {len(self.moments)} or not 0 <= done <= self.total:
            msg = f"{path} counts other steps or blocks than this run; delete it or choose another resume path"
            raise ScoresError(msg)
        self.moments, self.parts, self.done = moments, parts, done


def _no_moments(num_blocks: int) -> list[Moments]:
    return [Moments() for _ in range(num_blocks)]


def _read_moments(entries: Any) -> list[Moments]:
    return [Moments(int(m["count"]), float(m["mean"]), float(m["squares"])) for m in entries]

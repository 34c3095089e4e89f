"""How far a scoring run has come, on disk, so that a killed run goes on where it was."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from blockexport.core.jsonio import dump_json, read_json, write_atomically
from blockexport.errors import ScoresError
from blockexport.scoring.moments import Moments

ProgressCallback = Callable[[int, int], None]


@dataclass(slots=True)
class Progress:
    """The steps done and what they have measured.

    Attributes:
        identity: what the run computes; a file of another identity is not continued.
        total: steps of the whole run.
        moments: one per block.
        done: steps finished, in the run's fixed order.
        path: where to keep all this; nowhere when None.
        on_progress: told (done, total) after each step, and once before the first.
    """

    identity: dict[str, Any]
    total: int
    moments: list[Moments]
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
        progress = cls(identity, total, [Moments() for _ in range(num_blocks)], 0, path, on_progress)
        if path is not None and path.exists():
            progress._restore(path)
        progress._report()
        return progress

    def advance(self) -> None:
        """Count one step as done and write that down."""
        self.done += 1
        if self.path is not None:
            state = {"identity": self.identity, "done": self.done, "moments": [asdict(m) for m in self.moments]}
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
            moments = [Moments(int(m["count"]), float(m["mean"]), float(m["squares"])) for m in state["moments"]]
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path} is not the file of an unfinished scoring run; delete it or choose another resume path"
            raise ScoresError(msg) from error
        if theirs != self.identity:
            names = sorted(theirs.keys() | self.identity.keys())
            differing = [name for name in names if theirs.get(name) != self.identity.get(name)]
            listed = ", ".join(f"{name} {theirs.get(name)!r} (now {self.identity.get(name)!r})" for name in differing)
            msg = f"{path} belongs to an unfinished run with {listed}; delete it or choose another resume path"
            raise ScoresError(msg)
        if len(moments) != len(self.moments) or not 0 <= done <= self.total:
            msg = f"{path} counts other steps or blocks than this run; delete it or choose another resume path"
            raise ScoresError(msg)
        self.moments, self.done = moments, done

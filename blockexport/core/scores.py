"""Block importance: one score per block, with what it takes to trust and repeat it."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from blockexport.core.task_scores import Agreement, Halves, TaskScores, read_halves
from blockexport.errors import ScoresError

SCHEMA_VERSION = 1
# Shapes found in the wild: {"merged_scores": {"0": 0.56, ...}}, the same under two other names, or the flat map.
_SEED_KEYS = ("merged_scores", "train_scores", "importance_scores")
# Above any transformer's depth; a misread key must not ask for as many scores as it says.
_MAX_BLOCKS = 100_000


@dataclass(frozen=True, slots=True)
class BlockScores:
    """Importance per block; higher means the model needs it more.

    Attributes:
        method: the scoring method's name.
        scores: one per block; +inf for protected blocks.
        stderr: standard error of each score; 0 for protected blocks and for methods without sampling noise.
        protected: blocks that selection must keep.
        model: digest of the scored model, "" when the file does not say.
        data: digest of the data.
        seed: seed of the data order.
        num_samples: samples each score rests on.
        tasks: the same on each task alone, when the data has several.
        halves: the scores from either half of the samples, for `agreement`; empty when there are too few.
    """

    method: str
    scores: tuple[float, ...]
    stderr: tuple[float, ...]
    protected: tuple[int, ...] = ()
    model: str = ""
    data: str = ""
    seed: int = 0
    num_samples: int = 0
    tasks: tuple[TaskScores, ...] = ()
    halves: Halves = ()

    def __post_init__(self) -> None:
        if not self.scores:
            msg = "no scores given; a model has at least one block"
            raise ScoresError(msg)
        if len(self.stderr) != len(self.scores):
            msg = f"{len(self.scores)} scores but {len(self.stderr)} standard errors; give one for each block"
            raise ScoresError(msg)
        if not all(math.isfinite(error) and error >= 0 for error in self.stderr):
            msg = f"standard errors are {list(self.stderr)}; each must be finite and not negative, score again"
            raise ScoresError(msg)
        bad = [i for i, score in enumerate(self.scores) if math.isnan(score)]
        if bad:
            msg = f"the scores of blocks {bad} are NaN; score again with data on which the model's outputs are finite"
            raise ScoresError(msg)
        unprotected_inf = [i for i, s in enumerate(self.scores) if math.isinf(s) and i not in self.protected]
        if unprotected_inf:
            msg = f"blocks {unprotected_inf} score infinity but are not protected; list them under `protected`"
            raise ScoresError(msg)
        if any(not 0 <= block < len(self.scores) for block in self.protected):
            msg = f"protected blocks {list(self.protected)} reach outside 0..{len(self.scores) - 1}"
            raise ScoresError(msg)
        rows = [*self.halves, *(row for task in self.tasks for row in (task.scores, task.stderr, *task.halves))]
        if any(len(row) != len(self.scores) or any(map(math.isnan, row)) for row in rows):
            msg = f"scores of tasks and halves must be one number for each of {len(self.scores)} blocks; score again"
            raise ScoresError(msg)

    @property
    def num_blocks(self) -> int:
        """Blocks of the scored model."""
        return len(self.scores)

    def of_task(self, name: str) -> "BlockScores":
        """The scores of one task, as if nothing else had been scored.

        Raises:
            ScoresError: there is no such task.
        """
        for task in self.tasks:
            if task.name == name:
                return replace(
                    self,
                    scores=task.scores,
                    stderr=task.stderr,
                    num_samples=task.num_samples,
                    tasks=(),
                    halves=task.halves,
                )
        listed = ", ".join(task.name for task in self.tasks) or "none"
        msg = f"no scores of task {name!r}; these scores tell apart: {listed}"
        raise ScoresError(msg)

    @property
    def agreement(self) -> Agreement:
        """How far the scores from halves of the samples and from single tasks agree."""
        measured = [i for i in range(self.num_blocks) if i not in self.protected]
        merged = TaskScores("", self.scores, self.stderr, self.num_samples, self.halves)
        return Agreement.of(measured, merged, self.tasks)

    def to_json(self) -> dict[str, Any]:
        """The scores as their file holds them; what is not known of tasks and halves is left out."""
        fields: dict[str, Any] = asdict(self)
        known = {name: value for name, value in fields.items() if name not in {"tasks", "halves"} or value}
        agreement = {"spearman": self.agreement.to_json()} if self.halves else {}
        return {"schema_version": SCHEMA_VERSION, **known, **agreement}

    @classmethod
    def from_json(cls, value: Any, num_blocks: int | None = None) -> Self:
        """Read a score file: our own, or a map from block index to score.

        A map may leave blocks out; those are protected, since nothing was measured about them.

        Args:
            value: the parsed JSON.
            num_blocks: blocks of the model; needed when a map leaves out blocks behind its last one.

        Raises:
            ScoresError: the value is no score file, or is one of a model with another number of blocks.
        """
        if not isinstance(value, dict):
            msg = f"a score file holds a JSON object, got {type(value).__name__}; write one with `blockexport score`"
            raise ScoresError(msg)
        result = cls._from_own(value) if "method" in value else cls._from_map(value, num_blocks)
        if num_blocks is not None and result.num_blocks != num_blocks:
            msg = f"scores for {result.num_blocks} blocks given, but the model has {num_blocks}; score this model"
            raise ScoresError(msg)
        return result

    @classmethod
    def _from_own(cls, value: dict[str, Any]) -> Self:
        if value.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            msg = (
                f"a score file of schema_version {value['schema_version']!r}; this blockexport reads {SCHEMA_VERSION}, "
                "score again with it"
            )
            raise ScoresError(msg)
        # Correlations follow from the scores.
        fields = {key: item for key, item in value.items() if key not in {"schema_version", "spearman"}}
        try:
            fields |= {key: tuple(float(x) for x in fields[key]) for key in ("scores", "stderr")}
            fields["protected"] = tuple(int(x) for x in fields.get("protected", ()))
            fields["tasks"] = tuple(TaskScores.from_json(task) for task in fields.get("tasks", ()))
            fields["halves"] = read_halves(fields.get("halves", ()))
            return cls(**fields)
        except ScoresError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            msg = f"not a score file ({error}); write one with `blockexport score`"
            raise ScoresError(msg) from error

    @classmethod
    def _from_map(cls, value: dict[str, Any], num_blocks: int | None) -> Self:
        nested = next((value[key] for key in _SEED_KEYS if isinstance(value.get(key), dict)), value)
        try:
            by_block = {int(key): float(score) for key, score in nested.items()}
        except (TypeError, ValueError) as error:
            keys = ", ".join(_SEED_KEYS)
            msg = f"a score map goes from block index to number, also under {keys}; got keys {sorted(nested)[:5]}"
            raise ScoresError(msg) from error
        outside = [block for block in by_block if not 0 <= block < _MAX_BLOCKS]
        if outside:
            msg = f"a score map names block {outside[0]}; block indices start at 0 and end below {_MAX_BLOCKS}"
            raise ScoresError(msg)
        size = max(num_blocks or 0, max(by_block, default=-1) + 1)
        missing = tuple(i for i in range(size) if i not in by_block)
        scores = tuple(by_block.get(i, math.inf) for i in range(size))
        return cls(method="imported", scores=scores, stderr=(0.0,) * size, protected=missing)

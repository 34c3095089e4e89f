"""Every way of choosing blocks, side by side on one model: what it chose at each depth and how good that is."""

from dataclasses import dataclass
from typing import Any, Self

from blockexport.core.masks import DepthMask
from blockexport.core.quality import Quality
from blockexport.core.scores import BlockScores
from blockexport.errors import ConfigError

SCHEMA_VERSION = 1
STUDY_FILE = "study.json"
FULL = "full"
"""The strategy of the row that keeps every block, against which the others are read."""


@dataclass(frozen=True, slots=True)
class StudyData:
    """One set of samples: where it came from, its SHA-256, and how many samples it has."""

    name: str
    digest: str
    num_samples: int


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One choice of blocks.

    Attributes:
        strategy: `full` or the name of a strategy.
        method: the scoring method that the choice rests on; "" for strategies that use no scores.
        depth: kept blocks.
        kept: which ones.
        quality: measured on the study's test data.
    """

    strategy: str
    method: str
    depth: int
    kept: tuple[int, ...]
    quality: Quality

    @property
    def label(self) -> str:
        """The choice in a few words, such as `top_k: activation`."""
        return f"{self.strategy}: {self.method}" if self.method else self.strategy

    def to_json(self) -> dict[str, Any]:
        """The row as its file holds it."""
        return {
            "strategy": self.strategy,
            "method": self.method,
            "depth": self.depth,
            "kept": list(self.kept),
            "quality": self.quality.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Study:
    """Strategies and scoring methods compared on one model.

    Attributes:
        model: name of the model.
        model_digest: SHA-256 of its configuration and weights.
        num_blocks: its blocks.
        selection_data: what the choices rest on.
        test_data: what quality was measured on; no sample of the above.
        seed: of the draw of both.
        evaluator: what quality was measured with.
        scores: one entry for each scoring method.
        rows: the full model first.
    """

    model: str
    model_digest: str
    num_blocks: int
    selection_data: StudyData
    test_data: StudyData
    seed: int
    scores: tuple[BlockScores, ...]
    rows: tuple[StudyRow, ...]
    evaluator: str = "eager masked"

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0].strategy != FULL:
            msg = "a study begins with the row of the full model; run it again"
            raise ConfigError(msg)
        for row in self.rows:
            if DepthMask(row.kept, self.num_blocks).depth != row.depth or not row.quality.metrics:
                msg = f"row {row.label} at depth {row.depth} keeps {len(row.kept)} blocks or has no quality; run again"
                raise ConfigError(msg)

    @property
    def full(self) -> StudyRow:
        """The row of the full model."""
        return self.rows[0]

    def to_json(self) -> dict[str, Any]:
        """The study as its file holds it; no times and no paths, so that equal runs give equal bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": {"name": self.model, "digest": self.model_digest, "num_blocks": self.num_blocks},
            "data": {"selection": _data_json(self.selection_data), "test": _data_json(self.test_data)},
            "seed": self.seed,
            "evaluator": self.evaluator,
            "scores": [scores.to_json() for scores in self.scores],
            "rows": [row.to_json() for row in self.rows],
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` gave.

        Raises:
            ConfigError: the value is no study of this version.
        """
        try:
            version = value["schema_version"]
            if version != SCHEMA_VERSION:
                msg = f"a study of schema version {version}, but this blockexport reads {SCHEMA_VERSION}; run it again"
                raise ConfigError(msg)
            model = value["model"]
            return cls(
                model=model["name"],
                model_digest=model["digest"],
                num_blocks=model["num_blocks"],
                selection_data=_read_data(value["data"]["selection"]),
                test_data=_read_data(value["data"]["test"]),
                seed=value["seed"],
                scores=tuple(BlockScores.from_json(entry, model["num_blocks"]) for entry in value["scores"]),
                rows=tuple(_read_row(entry) for entry in value["rows"]),
                evaluator=value["evaluator"],
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            msg = f"not a study ({error!r}); write one with `blockexport study`"
            raise ConfigError(msg) from error


def _data_json(data: StudyData) -> dict[str, Any]:
    return {"name": data.name, "digest": data.digest, "samples": data.num_samples}


def _read_data(value: dict[str, Any]) -> StudyData:
    return StudyData(value["name"], value["digest"], value["samples"])


def _read_row(value: dict[str, Any]) -> StudyRow:
    quality = Quality.from_json(value["quality"])
    return StudyRow(value["strategy"], value["method"], value["depth"], tuple(value["kept"]), quality)

"""Scores kept between builds, content-addressed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from blockexport.core.data import Dataset
from blockexport.core.jsonio import dump_json, read_json, write_atomically
from blockexport.core.scores import BlockScores
from blockexport.errors import ConfigError
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.fingerprint import code_digest, digest_value, tool_versions
from blockexport.scoring import score


def cached_scores(
    model: LoadedModel,
    *,
    method: str,
    data: Dataset,
    protected: Sequence[int] = (),
    seed: int = 0,
    num_samples: int | None = None,
    vision: bool = False,
    cache_folder: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BlockScores:
    """Scores from the cache if they are there, else measured and put there; a killed run goes on where it was.

    Args:
        model: the model to score.
        method: name of the scoring method.
        data: what it is scored on.
        protected: blocks that must stay.
        seed: of the draw of the samples.
        num_samples: samples to use; None for all.
        vision: score the vision side's blocks.
        cache_folder: where scores are kept; None to measure in any case.
        on_progress: called with (steps done, steps in all).

    Raises:
        ConfigError: see `scoring.score`.
    """

    def measure(resume_path: Path | None) -> BlockScores:
        return score(
            model,
            method=method,
            data=data,
            protected=protected,
            seed=seed,
            num_samples=num_samples,
            vision=vision,
            resume_path=resume_path,
            on_progress=on_progress,
        )

    if cache_folder is None:
        return measure(None)
    side = model.vision_side if vision else None
    num_blocks = model.num_blocks if side is None else side.num_blocks
    digest = model.spec.vision_scores_digest if vision else model.spec.digest
    key = digest_value(
        {
            "method": method,
            "model": digest,
            "data": data.digest,
            "protected": sorted(set(protected)),
            "seed": seed,
            "num_samples": num_samples,
            "tools": tool_versions(),
            "code": code_digest(),
        }
    )
    path = cache_folder / "scores" / f"{key}.json"
    found = _read(path, digest, num_blocks)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = measure(path.with_suffix(".unfinished"))
        write_atomically(path, dump_json(found.to_json()))
    return found


def _read(path: Path, digest: str, num_blocks: int) -> BlockScores | None:
    """A cache entry, or None when there is none that can be used: a damaged one is measured again."""
    if not path.is_file():
        return None
    try:
        found = BlockScores.from_json(read_json(path), num_blocks)
    except ConfigError:
        return None
    return found if found.model == digest else None

from pathlib import Path
from typing import Any

import pytest

from blockexport.core.scores import BlockScores
from blockexport.models.loaded import wrap_module
from blockexport.pipeline import score_cache
from blockexport.pipeline.score_cache import cached_scores
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import tiny_model

MODEL = wrap_module(tiny_model("llama", 3))
DATA = tiny_dataset("decoder")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was really measured."""
    calls: list[dict[str, Any]] = []
    measure = score_cache.score

    def counted(model: Any, **options: Any) -> BlockScores:
        calls.append(options)
        return measure(model, **options)

    monkeypatch.setattr(score_cache, "score", counted)
    return calls


def scores(folder: Path | None, **options: Any) -> BlockScores:
    return cached_scores(MODEL, **({"method": "activation", "data": DATA, "cache_folder": folder} | options))


def test_the_second_time_nothing_is_measured(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    first = scores(tmp_path)
    assert scores(tmp_path) == first
    assert len(runs) == 1
    assert [path.suffix for path in (tmp_path / "scores").iterdir()] == [".json"]


def test_what_changes_the_scores_changes_the_entry(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    scores(tmp_path)
    variants: list[dict[str, Any]] = [
        {"method": "block_influence"},
        {"data": tiny_dataset("decoder", seed=1)},
        {"seed": 1},
        {"num_samples": 2},
        {"protected": (1,)},
    ]
    for variant in variants:
        scores(tmp_path, **variant)
    other = wrap_module(tiny_model("llama", 3, seed=1))
    cached_scores(other, method="activation", data=DATA, cache_folder=tmp_path)
    assert len(runs) == 2 + len(variants)


def test_without_a_folder_nothing_is_kept(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    scores(None)
    scores(None)
    assert len(runs) == 2
    assert runs[0]["resume_path"] is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"method": "m"}', b"\xff"])
def test_a_damaged_entry_is_measured_again(content: bytes, tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    first = scores(tmp_path)
    (entry,) = (tmp_path / "scores").iterdir()
    entry.write_bytes(content)
    assert scores(tmp_path) == first
    assert len(runs) == 2


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    # Two samples a batch make several steps.
    with pytest.raises(KeyboardInterrupt):
        scores(tmp_path, method="loss_drop", on_progress=stop)
    seen: list[int] = []
    resumed = scores(tmp_path, method="loss_drop", on_progress=lambda done, _: seen.append(done))
    assert seen[0] == 2
    assert resumed == scores(None, method="loss_drop")

"""Which failures leave files for CI, and which leave everything as it was."""

from pathlib import Path
from typing import Any

import pytest

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.errors import BundleError, ConfigError, DataError, ExportError, ParityError, QualityError
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.pipeline import build_step
from blockexport.pipeline.build import BuildOptions
from blockexport.testing.tiny_models import tiny_model

LADDER = DepthLadder.from_masks([DepthMask.full(2)])


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return wrap_module(tiny_model("llama", 2))


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(build_step, "build", build)


@pytest.mark.parametrize("error", [ParityError, QualityError, ExportError])
def test_a_failure_of_the_build_is_written_down(
    error: type[Exception], model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error("what went wrong"), monkeypatch)
    with pytest.raises(error):
        build_step.build_with_summary(model, LADDER, out=tmp_path / "b", options=BuildOptions())
    assert "what went wrong" in (tmp_path / "b.summary.md").read_text()
    assert "what went wrong" in (tmp_path / "b.junit.xml").read_text()


@pytest.mark.parametrize("error", [ConfigError, DataError, BundleError])
def test_bad_input_leaves_the_files_of_the_last_build(
    error: type[Exception], model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.summary.md").write_text("of the last build")
    fail_with(error("no"), monkeypatch)
    with pytest.raises(error):
        build_step.build_with_summary(model, LADDER, out=tmp_path / "b", options=BuildOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["b.summary.md"]
    assert (tmp_path / "b.summary.md").read_text() == "of the last build"


def test_a_place_under_a_file_is_bad_input(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="cannot write"):
        build_step.build_with_summary(model, LADDER, out=tmp_path / "file" / "b", options=BuildOptions())
    assert (tmp_path / "file").read_text() == "mine"

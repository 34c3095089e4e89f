import os
from pathlib import Path

import pytest

from blockexport.errors import ConfigError
from blockexport.pipeline.cache import default_cache_folder, open_cache


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLOCKEXPORT_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("BLOCKEXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "blockexport"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "blockexport"


def test_a_folder_is_made(tmp_path: Path) -> None:
    assert open_cache(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_only_a_folder_that_was_named_must_be_usable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="cache folder"):
        open_cache(file / "cache")
    monkeypatch.setenv("BLOCKEXPORT_CACHE", str(file / "cache"))
    assert open_cache(None) is None


def test_a_named_folder_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cache folder"):
        open_cache(tmp_path)
    monkeypatch.setenv("BLOCKEXPORT_CACHE", str(tmp_path))
    assert open_cache(None) is None

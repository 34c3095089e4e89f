from pathlib import Path
from typing import Any

import pytest

from blockexport.bundle.reader import open_bundle
from blockexport.runtime.packed_cache import PackedCache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOCKEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_empty_cache_is_no_error(cli: Any, folder: Path) -> None:
    for action in ("list", "clear"):
        done = cli("cache", action, "--json")
        assert done.code == 0
        assert done.value == {"action": action, "folder": str(folder / "packed"), "size_bytes": 0, "entries": []}
    assert not folder.exists()


def test_entries_are_listed_and_cleared(cli: Any, folder: Path, workspace: Any) -> None:
    bundle = open_bundle(workspace.bundle)
    levels = PackedCache().open(bundle)
    (entry,) = cli("cache", "list", "--json").value["entries"]
    assert (entry["key"], entry["bundle_sha256"]) == (levels.folder.name, bundle.manifest.digest)
    assert entry["size_bytes"] > bundle.weights_path.stat().st_size
    assert entry["in_use"]
    shown = cli("cache", "list").out
    assert levels.folder.name in shown
    assert "kept: 1 bundles" in shown
    assert cli("cache", "clear", "--json").value["entries"] == []
    assert levels.folder.is_dir()
    levels.close()
    cleared = cli("cache", "clear", "--json").value
    assert cleared["entries"] == [entry | {"in_use": False}]
    assert cleared["size_bytes"] == entry["size_bytes"]
    assert cli("cache", "list", "--json").value["entries"] == []


def test_another_folder_can_be_named(cli: Any, tmp_path: Path) -> None:
    assert cli("cache", "list", "--cache-dir", tmp_path / "x", "--json").value["folder"] == str(tmp_path / "x/packed")


def test_other_actions_are_refused(cli: Any) -> None:
    assert cli("cache", "burn", "--json").code == 2

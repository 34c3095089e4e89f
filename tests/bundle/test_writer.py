import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexport.bundle import swap
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.reader import check_bundle, open_bundle
from blockexport.bundle.weights import write_weights
from blockexport.bundle.writer import BundleWriter
from blockexport.errors import BundleError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_give_identical_bytes(tmp_path: Path, build_bundle: Any) -> None:
    build_bundle(tmp_path / "a")
    build_bundle(tmp_path / "other" / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "other" / "b")
    assert len(contents(tmp_path / "a")) == 5


def test_the_manifest_lists_every_file_and_the_weights(tmp_path: Path, build_bundle: Any) -> None:
    manifest = build_bundle(tmp_path / "bundle")
    sizes = {path: len(data) for path, data in contents(tmp_path / "bundle").items() if path != "manifest.json"}
    assert {entry.path: entry.size_bytes for entry in manifest.files} == sizes
    assert [entry.path for entry in manifest.files] == sorted(sizes)
    assert (manifest.weights.path, manifest.weights.num_tensors) == (WEIGHTS_FILE, 2)
    assert open_bundle(tmp_path / "bundle").manifest == manifest
    assert names(tmp_path) == ["bundle"]


def test_the_folder_is_as_readable_as_the_user_makes_folders(tmp_path: Path, build_bundle: Any) -> None:
    (tmp_path / "ordinary").mkdir()
    build_bundle(tmp_path / "bundle")
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_bundle_is_replaced_whole(tmp_path: Path, build_bundle: Any) -> None:
    build_bundle(tmp_path / "bundle", 1)
    open_bundle(tmp_path / "bundle").write_profile("host", {"ms": 1})
    (tmp_path / "bundle" / "stray").write_text("x")
    build_bundle(tmp_path / "bundle", 2)
    build_bundle(tmp_path / "fresh", 2)
    assert contents(tmp_path / "bundle") == contents(tmp_path / "fresh")
    assert names(tmp_path) == ["bundle", "fresh"]


def test_an_empty_folder_is_taken(tmp_path: Path, build_bundle: Any) -> None:
    (tmp_path / "bundle").mkdir()
    build_bundle(tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").folder == tmp_path / "bundle"


def test_a_link_to_the_place_is_followed(tmp_path: Path, build_bundle: Any) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    build_bundle(tmp_path / "link", 1)
    build_bundle(tmp_path / "link", 2)
    assert (tmp_path / "link").is_symlink()
    assert open_bundle(tmp_path / "link").folder == (tmp_path / "real").resolve()


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path, build_bundle: Any, name: str) -> None:
    (tmp_path / "work").mkdir()
    # A browser extension has a manifest.json too.
    (tmp_path / "work" / name).write_text('{"manifest_version": 3}')
    with pytest.raises(BundleError, match="no bundle; give another path"):
        build_bundle(tmp_path / "work")
    assert contents(tmp_path / "work") == {name: b'{"manifest_version": 3}'}
    assert names(tmp_path) == ["work"]


def test_a_file_is_not_replaced(tmp_path: Path, build_bundle: Any) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="not a folder"):
        build_bundle(tmp_path / "file")
    with pytest.raises(BundleError):
        build_bundle(tmp_path / "file" / "bundle")
    assert (tmp_path / "file").read_text() == "x"


def test_overwriting_can_be_forbidden(tmp_path: Path, build_bundle: Any) -> None:
    build_bundle(tmp_path / "bundle", 1, overwrite=False)
    with pytest.raises(BundleError, match="allow overwriting"):
        build_bundle(tmp_path / "bundle", 2, overwrite=False)
    assert all(check.ok for check in check_bundle(tmp_path / "bundle"))


def test_a_bundle_that_appears_meanwhile_is_respected(tmp_path: Path, build_bundle: Any, make_draft: Any) -> None:
    with BundleWriter(tmp_path / "bundle", overwrite=False) as late:
        write_weights(late.path_for(WEIGHTS_FILE), {"a": np.zeros(1)})
        for path in ("d3.ort.onnx", "d2.ort.onnx"):
            late.add_bytes(path, b"late")
        build_bundle(tmp_path / "bundle", 1)
        with pytest.raises(BundleError, match="is a bundle already"):
            late.commit(make_draft())
    assert contents(tmp_path / "bundle")["d3.ort.onnx"] == b"graph d3 1"
    assert names(tmp_path) == ["bundle"]


def _give_up(out: Path, error: type[BaseException]) -> None:
    with BundleWriter(out) as unfinished:
        unfinished.add_bytes("d3.ort.onnx", b"x")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_leaving_by_an_error_leaves_all_as_it_was(
    tmp_path: Path, build_bundle: Any, error: type[BaseException]
) -> None:
    build_bundle(tmp_path / "bundle", 1)
    before = contents(tmp_path / "bundle")
    for out in ("bundle", "fresh"):
        with pytest.raises(error):
            _give_up(tmp_path / out, error)
    assert contents(tmp_path / "bundle") == before
    assert names(tmp_path) == ["bundle"]


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as unfinished:
        unfinished.add_bytes("d3.ort.onnx", b"x")
        assert unfinished.folder.parent == tmp_path
    assert not names(tmp_path)
    with pytest.raises(BundleError, match="not open"):
        _ = unfinished.folder


def test_nothing_can_be_added_before_the_block_or_after_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not open"):
        BundleWriter(tmp_path / "bundle").add_bytes("a", b"")


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "a/../../x", "manifest.json", "profiles/x.json", ""])
def test_no_file_can_be_written_outside(tmp_path: Path, path: str) -> None:
    with BundleWriter(tmp_path / "bundle") as unfinished:
        with pytest.raises(BundleError):
            unfinished.add_bytes(path, b"x")
        assert not names(unfinished.folder)


def test_add_tree_copies_contents_behind_file_links(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    (source / "sub").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"blob")
    (source / "tokenizer.json").symlink_to(tmp_path / "blob")
    (source / "sub" / "x").write_bytes(b"x")
    with BundleWriter(tmp_path / "bundle") as unfinished:
        unfinished.add_tree(source, "tokenizer")
        assert contents(unfinished.folder) == {"tokenizer/tokenizer.json": b"blob", "tokenizer/sub/x": b"x"}
        assert not (unfinished.folder / "tokenizer" / "tokenizer.json").is_symlink()
        with pytest.raises(BundleError, match="not a folder"):
            unfinished.add_tree(tmp_path / "blob", "x")
        (source / "loop").symlink_to(source)
        with pytest.raises(BundleError, match="link to a folder"):
            unfinished.add_tree(source, "y")
        (source / "loop").unlink()
        (source / "dangling").symlink_to("nowhere")
        with pytest.raises(BundleError, match="No such file"):
            unfinished.add_tree(source, "z")


def _spoil(kind: str, folder: Path) -> None:
    if kind == "no weights":
        (folder / WEIGHTS_FILE).unlink()
    elif kind == "bad weights":
        (folder / WEIGHTS_FILE).write_bytes(b"x")
    elif kind == "no engine":
        (folder / "d2.ort.onnx").unlink()
    elif kind == "link":
        (folder / "link").symlink_to(WEIGHTS_FILE)
    elif kind == "pipe":
        os.mkfifo(folder / "pipe")
    elif kind == "profile":
        (folder / "profiles").mkdir()
        (folder / "profiles" / "x.json").write_bytes(b"{}")
    elif kind == "backslash":
        (folder / "a\\b").write_bytes(b"")
    elif kind == "case":
        (folder / "D2.ort.onnx").write_bytes(b"")


@pytest.mark.parametrize(
    "kind", ["no weights", "bad weights", "no engine", "link", "pipe", "profile", "backslash", "case"]
)
def test_a_bad_staging_folder_is_not_committed(tmp_path: Path, build_bundle: Any, make_draft: Any, kind: str) -> None:
    build_bundle(tmp_path / "bundle", 1)
    before = contents(tmp_path / "bundle")
    with BundleWriter(tmp_path / "bundle") as bad:
        write_weights(bad.path_for(WEIGHTS_FILE), {"a": np.zeros(1)})
        for path in ("d3.ort.onnx", "d2.ort.onnx"):
            bad.add_bytes(path, b"new")
        _spoil(kind, bad.folder)
        with pytest.raises(BundleError):
            bad.commit(make_draft())
    assert contents(tmp_path / "bundle") == before
    assert names(tmp_path) == ["bundle"]


def test_empty_folders_are_dropped(tmp_path: Path, make_draft: Any) -> None:
    with BundleWriter(tmp_path / "bundle") as unfinished:
        write_weights(unfinished.path_for(WEIGHTS_FILE), {"a": np.zeros(1)})
        for path in ("d3.ort.onnx", "d2.ort.onnx"):
            unfinished.add_bytes(path, b"new")
        (unfinished.folder / "empty" / "inner").mkdir(parents=True)
        unfinished.commit(make_draft())
    assert open_bundle(tmp_path / "bundle").folder == tmp_path / "bundle"
    assert not (tmp_path / "bundle" / "empty").exists()


def test_everything_is_on_disk_before_it_takes_its_place(
    tmp_path: Path, build_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_put = os.fsync, swap.put_in_place

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(re.sub(r"\.building-\w+", "", os.path.relpath(path, tmp_path)))
        real_fsync(descriptor)

    def put(staging: Path, out: Path) -> None:
        events.append("swap")
        real_put(staging, out)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("blockexport.bundle.writer.put_in_place", put)
    build_bundle(tmp_path / "bundle")
    swapped = events.index("swap")
    wanted = {".bundle", ".bundle/tokenizer", *(f".bundle/{path}" for path in contents(tmp_path / "bundle"))}
    # The manifest is flushed under its temporary name.
    wanted.remove(".bundle/manifest.json")
    before = events[:swapped]
    assert wanted <= set(before)
    assert any(event.startswith(".bundle/.manifest.json.") for event in before)
    assert before[-1] == ".bundle"
    assert events[swapped + 1 :] == ["."]


def test_two_writers_do_not_disturb_each_other(tmp_path: Path, make_draft: Any) -> None:
    with BundleWriter(tmp_path / "bundle") as first, BundleWriter(tmp_path / "bundle") as second:
        assert first.folder != second.folder
        for number, each in enumerate((first, second)):
            write_weights(each.path_for(WEIGHTS_FILE), {"a": np.full(1, number)})
            for path in ("d3.ort.onnx", "d2.ort.onnx"):
                each.add_bytes(path, b"%d" % number)
        second.commit(make_draft())
        first.commit(make_draft())
    assert contents(tmp_path / "bundle")["d3.ort.onnx"] == b"0"
    assert open_bundle(tmp_path / "bundle").folder == tmp_path / "bundle"
    assert names(tmp_path) == ["bundle"]


def test_leftovers_of_dead_writers_go_and_those_of_others_stay(tmp_path: Path, build_bundle: Any) -> None:
    dead, other = tmp_path / ".bundle.building-0123", tmp_path / ".bundle2.building-0123"
    for folder in (dead, other):
        folder.mkdir()
        (folder / "x").write_bytes(b"x")
    alive, lock = swap.create_staging(tmp_path / "bundle")
    try:
        build_bundle(tmp_path / "bundle")
    finally:
        os.close(lock)
    assert not dead.exists()
    assert other.exists()
    assert alive.exists()


def test_a_full_disk_is_a_bundle_error(tmp_path: Path, build_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build_bundle(tmp_path / "bundle", 1)

    def full(staging: Path, out: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("blockexport.bundle.writer.put_in_place", full)
    with pytest.raises(BundleError, match="No space left on device; make room"):
        build_bundle(tmp_path / "bundle", 2)
    assert contents(tmp_path / "bundle")["d3.ort.onnx"] == b"graph d3 1"
    assert names(tmp_path) == ["bundle"]

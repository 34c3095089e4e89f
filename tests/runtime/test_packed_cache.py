import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blockexport.backends.onnxruntime.packing import PACKED_FILE
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.reader import Bundle, open_bundle
from blockexport.bundle.sealed import seal, unseal
from blockexport.core.hardware import HostFingerprint
from blockexport.errors import BundleError
from blockexport.runtime import packed_cache
from blockexport.runtime.engines import BACKEND, Engines, LevelFile
from blockexport.runtime.packed_cache import PackedCache
from blockexport.runtime.packed_entry import PackedLevels
from blockexport.testing.tiny_bundle import NUM_IDS, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(tmp_path / "cache")


def bundle_of(folder: Path, seed: int = 0) -> Bundle:
    write_tiny_bundle(folder / f"bundle-{seed}", seed)
    return open_bundle(folder / f"bundle-{seed}")


IDS = {"input_ids": np.random.default_rng(0).integers(0, NUM_IDS, (2, 7))}


def answers(bundle: Bundle, levels: PackedLevels | None) -> dict[str, np.ndarray]:
    files = {}
    for level in bundle.manifest.levels:
        path = bundle.engine_path(level.name, BACKEND)
        files[level.name] = LevelFile(levels.path(path) if levels else path, level.kept)
    engines = Engines(bundle.manifest.model, files, threads=1)
    return {name: engines.single_pass(name).forward(IDS) for name in files}


def is_right(bundle: Bundle, levels: PackedLevels) -> bool:
    plain, packed = answers(bundle, None), answers(bundle, levels)
    return all(np.array_equal(plain[name], packed[name]) for name in plain)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The folders that were filled, in order."""
    folders: list[Path] = []
    pack = packed_cache.pack_graphs

    def note(graphs: dict[str, Path], folder: Path, **options: int) -> None:
        folders.append(folder)
        pack(graphs, folder, **options)

    monkeypatch.setattr(packed_cache, "pack_graphs", note)
    return folders


def visible(cache: PackedCache) -> list[str]:
    return sorted(os.listdir(cache.folder)) if cache.folder.is_dir() else []


def test_packed_levels_answer_bit_for_bit_as_the_bundle(bundle: Bundle, cache: PackedCache) -> None:
    levels = cache.open(bundle)
    assert levels.folder.parent == cache.folder
    assert is_right(bundle, levels)


def test_an_entry_is_made_once_and_lies_outside_the_bundle(bundle: Bundle, cache: PackedCache, made: list) -> None:
    before = sorted(os.listdir(bundle.folder))
    first = cache.open(bundle)
    assert cache.open(bundle).folder == first.folder
    assert len(made) == 1
    assert visible(cache) == [first.folder.name]
    assert sorted(os.listdir(bundle.folder)) == before


@pytest.mark.parametrize("name", [PACKED_FILE, "entry.json", WEIGHTS_FILE, "d2.ort.onnx"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_anywhere_is_noticed_and_made_good(
    bundle: Bundle, cache: PackedCache, made: list, name: str, harm: str
) -> None:
    first = cache.open(bundle)
    first.close()
    path = first.folder / name
    content = path.read_bytes()
    # The link to the bundle's file would damage the bundle.
    path.unlink()
    if harm != "remove":
        position = len(content) * 2 // 3
        flipped = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        path.write_bytes(flipped if harm == "flip" else content[:position])
    again = cache.open(bundle)
    assert len(made) == 2
    assert is_right(bundle, again)
    cache.open(bundle)
    assert len(made) == 2


def test_looking_makes_nothing(bundle: Bundle, cache: PackedCache, made: list) -> None:
    assert cache.find(bundle) is None
    assert not cache.folder.exists()
    levels = cache.open(bundle)
    found = cache.find(bundle)
    assert found is not None
    assert found.folder == levels.folder
    assert len(made) == 1


def test_a_file_too_many_is_noticed(bundle: Bundle, cache: PackedCache, made: list) -> None:
    first = cache.open(bundle)
    (first.folder / "more").write_bytes(b"")
    assert not (cache.open(bundle).folder / "more").exists()
    assert len(made) == 2


def test_what_is_left_of_a_killed_writer_goes(bundle: Bundle, cache: PackedCache) -> None:
    half = cache.folder / ".building-0123"
    half.mkdir(parents=True)
    (half / PACKED_FILE).write_bytes(b"half")
    levels = cache.open(bundle)
    assert visible(cache) == [levels.folder.name]


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": "Another 9000"},
        {"cpu_features": ("avx2",)},
        {"system": "Linux sparc"},
        {"packages": {"onnxruntime": "0.1"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_host_or_runtime_has_another_entry(
    bundle: Bundle, cache: PackedCache, made: list, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    here = cache.open(bundle)
    other = HostFingerprint.detect().model_copy(update=change)
    monkeypatch.setattr(HostFingerprint, "detect", classmethod(lambda cls: other))
    assert cache.open(bundle).folder != here.folder
    assert len(made) == 2


def test_the_same_host_with_another_python_shares(
    bundle: Bundle, cache: PackedCache, made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cache.open(bundle)
    other = HostFingerprint.detect().model_copy(update={"python": "3.99.0", "num_cpus": 999})
    monkeypatch.setattr(HostFingerprint, "detect", classmethod(lambda cls: other))
    assert cache.open(bundle).folder == here.folder
    assert len(made) == 1


def test_another_hosts_entry_under_this_ones_name_is_refused(bundle: Bundle, cache: PackedCache, made: list) -> None:
    first = cache.open(bundle)
    path = first.folder / "entry.json"
    listed = unseal(path.read_bytes(), "sha256", "the list") | {"cpu": "Another 9000"}
    path.write_bytes(seal(listed, "sha256"))
    again = cache.open(bundle)
    assert len(made) == 2
    assert is_right(bundle, again)


def test_two_processes_at_once_make_one_entry(bundle: Bundle, cache: PackedCache) -> None:
    code = (
        "import sys, time; from pathlib import Path;"
        "from blockexport.bundle.reader import open_bundle; from blockexport.runtime import packed_cache as p;"
        "pack = p.pack_graphs; made = [];"
        "p.pack_graphs = lambda *a, **k: (made.append(1), pack(*a, **k));"
        "b = open_bundle(Path(sys.argv[1])); c = p.PackedCache(Path(sys.argv[2]));"
        "print('ready', flush=True); sys.stdin.readline();"
        "levels = c.open(b); print(len(made), levels.folder.name)"
    )
    command = [sys.executable, "-c", code, str(bundle.folder), str(cache.folder.parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].split() for process in running]
    assert sorted(number for number, _ in said) == ["0", "0", "1"]
    assert [{name} for _, name in said] == [set(visible(cache))] * 3
    assert is_right(bundle, cache.open(bundle))


def test_levels_that_answer_differently_are_thrown_away(
    bundle: Bundle, cache: PackedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache, "gives_same_outputs", lambda first, second, threads: "d3" in first.name)
    with pytest.raises(BundleError, match="answers differently with packed weights"):
        cache.open(bundle)
    assert visible(cache) == []


def test_swapped_packed_bytes_are_thrown_away(
    bundle: Bundle, cache: PackedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison itself, on what it is there for: bytes that are not what the graph says they are."""
    pack = packed_cache.pack_graphs

    def pack_wrongly(graphs: dict[str, Path], folder: Path, **options: int) -> None:
        pack(graphs, folder, **options)
        with (folder / PACKED_FILE).open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(size // 2)
            file.write(bytes(size - size // 2))

    monkeypatch.setattr(packed_cache, "pack_graphs", pack_wrongly)
    with pytest.raises(BundleError):
        cache.open(bundle)
    assert visible(cache) == []


@pytest.mark.parametrize("call", [1, 4])
def test_a_full_disk_leaves_nothing_and_says_so(
    bundle: Bundle, cache: PackedCache, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls = []
    write = os.pwrite

    def run_full(*args: object) -> int:
        calls.append(args)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    monkeypatch.setattr(os, "pwrite", run_full)
    with pytest.raises(BundleError, match="No space left"):
        cache.open(bundle)
    assert visible(cache) == []
    monkeypatch.setattr(os, "pwrite", write)
    assert is_right(bundle, cache.open(bundle))


def test_a_disk_without_room_is_not_begun_on(
    bundle: Bundle, cache: PackedCache, made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(BundleError, match="are missing on the disk"):
        cache.open(bundle)
    assert made == []


def test_too_little_memory_is_said_beforehand(
    bundle: Bundle, cache: PackedCache, made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache, "available_memory_bytes", lambda: 1000)
    with pytest.raises(BundleError, match="MB of memory"):
        cache.open(bundle)
    assert made == []


def test_a_place_that_cannot_be_written_is_said(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="cannot write"):
        PackedCache(tmp_path / "file").open(bundle)


def age(levels: PackedLevels, seconds: int) -> None:
    os.utime(levels.folder / "entry.json", (seconds, seconds))


def test_the_least_recently_used_goes_and_none_in_use(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "cache")
    bundles = [bundle_of(tmp_path, i) for i in range(4)]
    opened = [cache.open(bundle) for bundle in bundles[:3]]
    names = [levels.folder.name for levels in opened]
    assert len(set(names)) == 3
    for position, levels in enumerate(opened):
        age(levels, 1000 + position)
    opened[1].close()
    opened[2].close()
    listed = cache.entries()
    assert [entry.key for entry in listed] == names
    assert [entry.in_use for entry in listed] == [True, False, False]
    cache.max_bytes = sum(entry.size_bytes for entry in listed) + 100
    newest = cache.open(bundles[3])
    assert set(visible(cache)) == {names[0], names[2], newest.folder.name}


def test_using_an_entry_makes_it_recent(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "cache")
    bundles = [bundle_of(tmp_path, i) for i in range(2)]
    for position, bundle in enumerate(bundles):
        age(cache.open(bundle), 1000 + position)
    first = cache.open(bundles[0])
    assert cache.entries()[-1].key == first.folder.name


def test_what_does_not_fit_beside_what_is_in_use_is_refused(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "cache")
    held = cache.open(bundle_of(tmp_path, 0))
    cache.max_bytes = cache.entries()[0].size_bytes + 100
    with pytest.raises(BundleError, match="too large"):
        cache.open(bundle_of(tmp_path, 1))
    assert visible(cache) == [held.folder.name]


def test_what_can_never_fit_drives_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PackedCache(tmp_path / "cache")
    cache.open(bundle_of(tmp_path, 0)).close()
    before = visible(cache)
    monkeypatch.setattr(packed_cache, "allocated_bytes", lambda folder: cache.max_bytes + 1)
    with pytest.raises(BundleError, match="too large"):
        cache.open(bundle_of(tmp_path, 1))
    assert visible(cache) == before


def test_clear_leaves_what_is_in_use(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "cache")
    held = cache.open(bundle_of(tmp_path, 0))
    free = cache.open(bundle_of(tmp_path, 1))
    gone = free.folder.name
    free.close()
    (cache.folder / ".building-1").mkdir()
    assert [entry.key for entry in cache.clear()] == [gone]
    assert visible(cache) == [held.folder.name]
    held.close()
    assert len(cache.clear()) == 1
    assert visible(cache) == []


def test_sessions_outlive_their_entry(bundle: Bundle, cache: PackedCache) -> None:
    levels = cache.open(bundle)
    path = levels.path(bundle.engine_path("d3", BACKEND))
    engines = Engines(bundle.manifest.model, {"d3": LevelFile(path, (0, 1, 2))}, threads=1)
    opened = engines.single_pass("d3")
    levels.close()
    cache.clear()
    assert not path.exists()
    assert np.array_equal(opened.forward(IDS), answers(bundle, None)["d3"])


def test_a_damaged_entry_is_listed_and_cleared(bundle: Bundle, cache: PackedCache) -> None:
    levels = cache.open(bundle)
    (levels.folder / "entry.json").write_text(json.dumps({}))
    levels.close()
    (entry,) = cache.entries()
    assert entry.bundle_sha256 == "damaged"
    assert cache.clear() == [entry]


def test_the_bundles_own_weights_are_not_counted(bundle: Bundle, cache: PackedCache) -> None:
    levels = cache.open(bundle)
    with_link = cache.entries()[0].size_bytes
    bundle.weights_path.unlink()
    assert cache.entries()[0].size_bytes > with_link
    assert (levels.folder / WEIGHTS_FILE).is_file()

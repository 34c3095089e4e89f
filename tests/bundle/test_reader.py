import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockexport.bundle import checks, reader
from blockexport.bundle.layout import MANIFEST_FILE, WEIGHTS_FILE
from blockexport.bundle.manifest import SEAL_FIELD, Manifest
from blockexport.bundle.reader import Bundle, check_bundle, open_bundle
from blockexport.bundle.sealed import seal
from blockexport.errors import BundleError, ConfigError, IntegrityError, SchemaVersionError

FILES = [MANIFEST_FILE, WEIGHTS_FILE, "d3.ort.onnx", "d2.ort.onnx", "tokenizer/tokenizer.json", "profiles/host.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failed(folder: Path) -> set[str]:
    checks = check_bundle(folder)
    assert all(bool(check.why) != check.ok for check in checks)
    return {check.id for check in checks if not check.ok}


def test_a_good_bundle_passes_every_check(bundle_folder: Path) -> None:
    open_bundle(bundle_folder).write_profile("host", {})
    wanted = ["manifest", "schema", "links", "extra", "files", "weights-layout"]
    wanted += [f"sha256:{path}" for path in sorted(FILES[1:5])] + ["profile:profiles/host.json"]
    assert [check.id for check in check_bundle(bundle_folder)] == wanted
    assert failed(bundle_folder) == set()


def test_what_a_bundle_gives(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    assert bundle.folder == bundle_folder
    assert [level.name for level in bundle.ladder.levels] == ["d3", "d2"]
    assert bundle.level("d2").kept == (0, 2)
    assert bundle.weights_path == bundle_folder / WEIGHTS_FILE
    assert bundle.tokenizer_folder == bundle_folder / "tokenizer"
    for path in (bundle.engine_path("d2", "onnxruntime"), bundle.engine_path("d2", "onnxruntime", "ort")):
        assert path == bundle_folder / "d2.ort.onnx"
    with pytest.raises(BundleError, match="no engine for tensorrt; it has onnxruntime/ort"):
        bundle.engine_path("d2", "tensorrt")
    with pytest.raises(BundleError, match="no engine for onnxruntime/std24"):
        bundle.engine_path("d2", "onnxruntime", "std24")
    with pytest.raises(ConfigError, match="no level 'd1'"):
        bundle.engine_path("d1", "onnxruntime")


def test_a_bundle_without_a_tokenizer(bundle_folder: Path) -> None:
    value = json.loads((bundle_folder / MANIFEST_FILE).read_bytes())
    del value[SEAL_FIELD]
    value["files"] = [entry for entry in value["files"] if not entry["path"].startswith("tokenizer")]
    (bundle_folder / MANIFEST_FILE).write_bytes(seal(value, SEAL_FIELD))
    (bundle_folder / "tokenizer" / "tokenizer.json").unlink()
    assert failed(bundle_folder) == {"extra"}
    (bundle_folder / "tokenizer").rmdir()
    assert open_bundle(bundle_folder).tokenizer_folder is None


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_noticed_wherever_it_is(bundle_folder: Path, name: str) -> None:
    open_bundle(bundle_folder).write_profile("host", {"decode_ms": [1.5, 2]})
    path = bundle_folder / name
    good = path.read_bytes()

    @given(st.integers(0, len(good) - 1), st.integers(1, 255))
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    def flip(position: int, bits: int) -> None:
        damaged = bytearray(good)
        damaged[position] ^= bits
        path.write_bytes(damaged)
        assert failed(bundle_folder)
        with pytest.raises(BundleError):
            open_bundle(bundle_folder)

    flip()
    path.write_bytes(good)
    assert failed(bundle_folder) == set()


@pytest.mark.parametrize("name", FILES[1:5])
def test_which_check_a_flipped_byte_fails(bundle_folder: Path, name: str) -> None:
    data = bytearray((bundle_folder / name).read_bytes())
    data[-1] ^= 1
    (bundle_folder / name).write_bytes(data)
    assert failed(bundle_folder) == {f"sha256:{name}"}
    with pytest.raises(IntegrityError, match=f"sha256:{name}.*restore it"):
        open_bundle(bundle_folder)
    assert open_bundle(bundle_folder, verify=False).folder == bundle_folder


def _truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).stat().st_size - 1)


def _remove(folder: Path) -> None:
    (folder / "d2.ort.onnx").unlink()


def _extra_file(folder: Path) -> None:
    (folder / "evil.so").write_bytes(b"")


def _extra_folder(folder: Path) -> None:
    (folder / "empty").mkdir()


def _profile_that_is_none(folder: Path) -> None:
    (folder / "profiles").mkdir()
    (folder / "profiles" / "x.so").write_bytes(b"")


def _folder_among_profiles(folder: Path) -> None:
    (folder / "profiles" / "x.json").mkdir(parents=True)
    (folder / "profiles" / "x.json" / "y.json").write_bytes(b"{}")


def _link_to_the_same_bytes(folder: Path) -> None:
    (folder / "d2.ort.onnx").rename(folder.parent / "d2")
    (folder / "d2.ort.onnx").symlink_to(folder.parent / "d2")


def _linked_folder(folder: Path) -> None:
    (folder / "tokenizer").rename(folder.parent / "tokenizer")
    (folder / "tokenizer").symlink_to(folder.parent / "tokenizer")


def _linked_profiles(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder / "profiles").symlink_to(folder.parent / "elsewhere")


def _pipe(folder: Path) -> None:
    (folder / "d2.ort.onnx").unlink()
    os.mkfifo(folder / "d2.ort.onnx")


def _folder_for_a_file(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).mkdir()


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (_truncate, {"files", "weights-layout", f"sha256:{WEIGHTS_FILE}"}),
        (_remove, {"files"}),
        (_extra_file, {"extra"}),
        (_extra_folder, {"extra"}),
        (_profile_that_is_none, {"extra"}),
        (_folder_among_profiles, {"extra"}),
        (_link_to_the_same_bytes, {"links", "files"}),
        (_linked_folder, {"links", "files"}),
        (_linked_profiles, {"links"}),
        (_pipe, {"links", "files"}),
        (_folder_for_a_file, {"files", "weights-layout", "extra"}),
    ],
)
def test_a_wrong_layout_is_noticed_even_without_hashing(
    bundle_folder: Path, spoil: Callable[[Path], None], wanted: set[str]
) -> None:
    spoil(bundle_folder)
    assert failed(bundle_folder) == wanted
    for verify in (True, False):
        with pytest.raises(IntegrityError):
            open_bundle(bundle_folder, verify=verify)


def test_nothing_below_a_folder_of_profiles_is_taken_for_one(bundle_folder: Path) -> None:
    _folder_among_profiles(bundle_folder)
    (why,) = [check.why for check in check_bundle(bundle_folder) if not check.ok]
    assert why.startswith("profiles/x.json is not listed in the manifest; profiles/x.json/y.json is not listed")


def test_all_problems_are_listed_not_only_the_first(bundle_folder: Path) -> None:
    _truncate(bundle_folder)
    _extra_file(bundle_folder)
    _linked_folder(bundle_folder)
    assert {"files", "extra", "links"} <= failed(bundle_folder)


def test_a_hard_link_is_allowed(bundle_folder: Path) -> None:
    os.link(bundle_folder / WEIGHTS_FILE, bundle_folder.parent / "cache")
    assert failed(bundle_folder) == set()


def test_a_manifest_that_counts_other_tensors_is_noticed(bundle_folder: Path) -> None:
    value = json.loads((bundle_folder / MANIFEST_FILE).read_bytes())
    del value[SEAL_FIELD]
    value["weights"]["num_tensors"] += 1
    (bundle_folder / MANIFEST_FILE).write_bytes(seal(value, SEAL_FIELD))
    assert failed(bundle_folder) == {"weights-layout"}


def test_a_path_out_of_the_bundle_is_refused_though_the_file_is_there(bundle_folder: Path) -> None:
    value = json.loads((bundle_folder / MANIFEST_FILE).read_bytes())
    del value[SEAL_FIELD]
    value["files"][0]["path"] = "../d2.ort.onnx"
    (bundle_folder / "d2.ort.onnx").rename(bundle_folder.parent / "d2.ort.onnx")
    (bundle_folder / MANIFEST_FILE).write_bytes(seal(value, SEAL_FIELD))
    assert failed(bundle_folder) == {"manifest"}
    with pytest.raises(IntegrityError, match=r"'\.\./d2\.ort\.onnx' is not allowed"):
        open_bundle(bundle_folder)


def test_a_newer_schema_is_its_own_error(bundle_folder: Path) -> None:
    value = json.loads((bundle_folder / MANIFEST_FILE).read_bytes()) | {"schema_version": 3, "new": []}
    (bundle_folder / MANIFEST_FILE).write_text(json.dumps(value))
    assert failed(bundle_folder) == {"schema"}
    with pytest.raises(SchemaVersionError, match="reads 1, 2; rebuild"):
        open_bundle(bundle_folder)


def test_a_missing_manifest(bundle_folder: Path) -> None:
    (bundle_folder / MANIFEST_FILE).unlink()
    assert failed(bundle_folder) == {"manifest"}
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_manifest_that_is_no_regular_file(bundle_folder: Path, kind: str) -> None:
    path = bundle_folder / MANIFEST_FILE
    path.rename(bundle_folder.parent / "manifest")
    if kind == "link":
        path.symlink_to(bundle_folder.parent / "manifest")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert failed(bundle_folder) == {"manifest"}
    with pytest.raises(IntegrityError, match="cannot read"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("name", ["none", "file"])
def test_what_is_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    for look in (open_bundle, check_bundle):
        with pytest.raises(BundleError, match=r"does not exist|is not a folder"):
            look(tmp_path / name)


def test_a_folder_that_cannot_be_listed_is_a_failed_check(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("tokenizer/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(
        "blockexport.bundle.disk.os.scandir", lambda path: scandir(f"{path}/" if path.name == "tokenizer" else path)
    )
    assert failed(bundle_folder) == {"files"}


def test_profiles(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    before = (bundle_folder / MANIFEST_FILE).read_bytes()
    assert bundle.read_profiles() == {}
    assert bundle.write_profile("b", {"ms": 1}) == bundle.profile_path("b") == bundle_folder / "profiles" / "b.json"
    bundle.write_profile("b", {"ms": 2})
    bundle.write_profile("a-1", {"fit": {"x": [0.5, None]}})
    assert bundle.read_profiles() == {"a-1": {"fit": {"x": [0.5, None]}}, "b": {"ms": 2}}
    assert names(bundle_folder / "profiles") == ["a-1.json", "b.json"]
    assert (bundle_folder / MANIFEST_FILE).read_bytes() == before
    assert failed(bundle_folder) == set()


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".x", "a b", "a.json", "x" * 101, "a\n"])
def test_a_host_key_must_be_a_file_name(bundle_folder: Path, key: str) -> None:
    with pytest.raises(ConfigError):
        open_bundle(bundle_folder).write_profile(key, {})
    assert not (bundle_folder / "profiles").exists()


def test_a_profile_of_another_build_is_left_out(tmp_path: Path, build_bundle: Any) -> None:
    for content, name in enumerate("abc"):
        build_bundle(tmp_path / name, content // 2)
    source = open_bundle(tmp_path / "a").write_profile("host", {"ms": 1})
    for name in "bc":
        (tmp_path / name / "profiles").mkdir()
        (tmp_path / name / "profiles" / "host.json").write_bytes(source.read_bytes())
    assert open_bundle(tmp_path / "b").read_profiles() == {"host": {"ms": 1}}
    assert open_bundle(tmp_path / "c").read_profiles() == {}


def test_a_damaged_profile_is_named(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    path = bundle.write_profile("host", {"ms": 1})
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    assert failed(bundle_folder) == {"profile:profiles/host.json"}
    with pytest.raises(IntegrityError, match=r"host\.json"):
        bundle.read_profiles()


@pytest.mark.parametrize("value", [{"ms": float("nan")}, {"ms": object()}])
def test_a_bad_profile_leaves_the_old_one(bundle_folder: Path, value: dict[str, Any]) -> None:
    bundle = open_bundle(bundle_folder)
    bundle.write_profile("host", {"ms": 1})
    with pytest.raises(ConfigError):
        bundle.write_profile("host", value)
    assert bundle.read_profiles() == {"host": {"ms": 1}}


def test_a_profile_write_that_fails_or_is_killed_leaves_a_good_bundle(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(bundle_folder)
    bundle.write_profile("host", {"ms": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(BundleError, match="No space left"):
            bundle.write_profile("host", {"ms": 2})
        # A kill does not get to the clean-up.
        patch.setattr(Path, "unlink", lambda path: None)
        with pytest.raises(BundleError):
            bundle.write_profile("host", {"ms": 3})
    assert len(names(bundle_folder / "profiles")) == 2
    assert failed(bundle_folder) == set()
    assert open_bundle(bundle_folder).read_profiles() == {"host": {"ms": 1}}


def test_a_profile_is_not_written_through_a_link(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    _linked_profiles(bundle_folder)
    with pytest.raises(IntegrityError, match="is a link"):
        bundle.write_profile("host", {})
    assert bundle.read_profiles() == {}
    assert not names(bundle_folder.parent / "elsewhere")


@pytest.mark.parametrize("content", [0, 1])
def test_a_bundle_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, build_bundle: Any, monkeypatch: pytest.MonkeyPatch, content: int
) -> None:
    build_bundle(tmp_path / "bundle", 0)
    real = reader._open
    looks = 0

    def slow(folder: Path, *, verify: bool) -> Bundle:
        nonlocal looks
        looks += 1
        bundle = real(folder, verify=verify)
        if looks == 1:
            new = build_bundle(folder, 7)
            assert new != bundle.manifest
            if content:
                msg = "a mixture"
                raise IntegrityError(msg)
        return bundle

    monkeypatch.setattr(reader, "_open", slow)
    bundle = open_bundle(tmp_path / "bundle")
    assert (bundle.folder / "d3.ort.onnx").read_bytes() == b"graph d3 7"
    assert bundle.manifest == real(tmp_path / "bundle", verify=True).manifest
    assert looks == 2


def test_a_bundle_that_is_missing_for_a_moment_is_waited_for(
    tmp_path: Path, build_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bundle(tmp_path / "aside")
    real = checks.read_manifest

    def late(folder: Path) -> Manifest:
        try:
            return real(folder)
        finally:
            if not folder.exists():
                (tmp_path / "aside").rename(folder)

    monkeypatch.setattr("blockexport.bundle.reader.read_manifest", late)
    assert open_bundle(tmp_path / "bundle").folder == tmp_path / "bundle"


def test_a_bundle_that_never_holds_still_is_given_up(
    tmp_path: Path, build_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bundle(tmp_path / "bundle")
    real = reader._open

    def slow(folder: Path, *, verify: bool) -> Bundle:
        bundle = real(folder, verify=verify)
        build_bundle(folder)
        return bundle

    monkeypatch.setattr(reader, "_open", slow)
    with pytest.raises(BundleError, match="was replaced 10 times"):
        open_bundle(tmp_path / "bundle")


def test_bundles_are_read_without_torch_or_a_runtime() -> None:
    program = (
        "import sys, blockexport.bundle.reader, blockexport.bundle.writer\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"

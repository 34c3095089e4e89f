import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blockexport.bundle.checks import Check
from blockexport.bundle.layout import PARITY_FILE
from blockexport.bundle.reader import open_bundle
from blockexport.errors import BackendUnavailableError, BundleError
from blockexport.runtime import verify as module
from blockexport.runtime.verify import is_verified, verify_bundle

# Each worker that runs one of these builds the bundle.
pytestmark = pytest.mark.slow

ENGINES = tuple(f"{level}.{target}.onnx" for level in ("d4", "d3", "d2") for target in ("ort", "native"))
FILES = ("manifest.json", "weights.safetensors", "parity.safetensors", "extra.txt", *ENGINES)


@pytest.fixture
def built(bundle_folder: Path) -> Path:
    return bundle_folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def statuses(checks: list[module.VerifiedCheck]) -> dict[str, str]:
    return {check.id: check.status for check in checks}


def test_an_intact_bundle_passes_every_check(built: Path) -> None:
    checks = verify_bundle(built)
    assert is_verified(checks)
    found = statuses(checks)
    assert set(found.values()) == {"ok"}
    recorded = {f"parity:{level.name}:{r.check}" for level in open_bundle(built).manifest.levels for r in level.parity}
    assert {f"sha256:{name}" for name in FILES[1:]} | recorded | {"audit:d4", "audit:d2"} <= found.keys()
    assert "parity:d2:decode" in recorded


def test_the_list_of_files_is_complete(built: Path) -> None:
    assert {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_flipped_byte_anywhere_is_found_before_anything_is_opened(
    bundle: Path, name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Engines", None)
    content = bytearray((bundle / name).read_bytes())
    content[int(share * (len(content) - 1))] ^= 0x01
    (bundle / name).write_bytes(content)
    checks = verify_bundle(bundle)
    assert not is_verified(checks)
    assert statuses(checks)["parity"] == statuses(checks)["audit"] == "not run"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert not is_verified(verify_bundle(bundle))


def test_an_added_file_is_found(bundle: Path) -> None:
    (bundle / "more.bin").write_bytes(b"x")
    assert not is_verified(verify_bundle(bundle))


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        verify_bundle(tmp_path / "none")


def trust_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every digest were right, so that only running the engines can tell."""
    monkeypatch.setattr(module, "check_bundle", lambda path: [Check("trusted", True)])


def test_changed_weights_fail_parity_even_where_digests_are_trusted(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_everything(monkeypatch)
    assert is_verified(verify_bundle(bundle))
    path = bundle / "weights.safetensors"
    content = path.read_bytes()
    half = len(content) // 2 // 64 * 64
    numbers = np.frombuffer(content[half:], np.float32).copy()
    numbers[:4096] += 0.5
    path.write_bytes(content[:half] + numbers.tobytes())
    found = statuses(verify_bundle(bundle))
    assert found["parity:d4:prefill"] == "failed"


def test_a_deeper_engine_in_a_level_fails_its_audit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_everything(monkeypatch)
    monkeypatch.setattr(module, "open_bundle", lambda path, verify: _with_swapped_engines(path))
    assert statuses(verify_bundle(bundle))["audit:d2"] == "failed"


def _with_swapped_engines(path: Path) -> object:
    bundle = open_bundle(path, verify=False)
    shutil.copyfile(path / "d4.ort.onnx", path / "d2.ort.onnx")
    return bundle


def test_an_engine_that_does_not_run_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_everything(monkeypatch)
    opened = open_bundle(bundle, verify=False)
    monkeypatch.setattr(module, "open_bundle", lambda path, verify: opened)
    monkeypatch.setattr(module, "_audits", lambda bundle: iter(()))
    (bundle / "d2.ort.onnx").write_bytes(b"no graph at all")
    found = {check.id: check for check in verify_bundle(bundle)}
    assert found["parity:d2"].status == "failed"
    assert "\n" not in found["parity:d2"].why
    assert found["parity:d4:prefill"].status == "ok"


def test_answers_that_were_not_recorded_fail(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_everything(monkeypatch)
    opened = open_bundle(bundle, verify=False)
    monkeypatch.setattr(module, "open_bundle", lambda path, verify: opened)
    (bundle / PARITY_FILE).unlink()
    found = statuses(verify_bundle(bundle))
    assert found["parity:d4"] == found["parity:d3"] == found["parity:d2"] == "failed"


def test_a_host_without_an_engine_runtime_says_so(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        msg = "not installed"
        raise BackendUnavailableError(msg)

    monkeypatch.setattr("blockexport.runtime.engines.OrtDecoder", refuse)
    found = {check.id: check for check in verify_bundle(built)}
    assert (found["parity:d4"].status, found["parity:d4"].why) == ("not run", "not installed")


def test_a_host_without_onnx_does_not_audit(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.util, "find_spec", lambda name: None)
    checks = verify_bundle(built)
    assert statuses(checks)["audit"] == "not run"
    assert is_verified(checks)


def test_it_needs_no_torch(built: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; from pathlib import Path; "
        "from blockexport.runtime.verify import verify_bundle, is_verified; "
        f"sys.exit(0 if is_verified(verify_bundle(Path({str(built)!r}))) else 'not verified')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

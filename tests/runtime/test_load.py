import shutil
from pathlib import Path
from typing import Any

import pytest

from blockexport.backends.onnxruntime.device import DeviceLevels
from blockexport.backends.onnxruntime.providers import CPU
from blockexport.bundle.reader import open_bundle
from blockexport.errors import BackendUnavailableError, BundleError, ConfigError, IntegrityError, RequestError
from blockexport.runtime import Runtime, load
from blockexport.runtime.others import OtherLevels

pytestmark = pytest.mark.slow


def test_levels_to_warm_up_are_open_and_others_are_not(bundle_folder: Path) -> None:
    assert load(bundle_folder).engines.opened == ()
    assert load(str(bundle_folder), threads=1, warm_up=["d2", "d4"]).engines.opened == ("d4", "d2")
    with pytest.raises(RequestError, match="no level 'd5'"):
        load(bundle_folder, warm_up=["d5"])


def test_a_cache_for_nothing_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(RequestError, match="kv_tokens is 0"):
        load(bundle_folder, kv_tokens=0)


def test_what_is_no_bundle_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        load(tmp_path)


def test_damage_is_found_before_an_engine_is(bundle_folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle_folder, tmp_path / "damaged"))
    (damaged / "d2.ort.onnx").write_bytes(b"no graph")
    with pytest.raises(IntegrityError):
        load(damaged)


def test_a_level_that_cannot_be_opened_stops_neither_requests_nor_sessions(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
    runtime = load(folder, verify=False, threads=1, operators="stock")
    (folder / "d2.ort.onnx").write_bytes(b"no graph")
    wanted = runtime.generate([1, 2], 5, stop_tokens=[]).tokens
    with pytest.raises(BundleError, match=r"cannot open d2\.ort\.onnx"):
        runtime.generate([1, 2], 2, level="d2")
    session = runtime.start([1, 2])
    tokens = [session.step()[0] for _ in range(2)]
    with pytest.raises(BundleError):
        session.switch("d2")
    assert (session.level, session.switches) == ("d4", ())
    assert tokens + [session.step()[0] for _ in range(3)] == wanted


def test_packed_weights_serve_stock_operators_once_they_were_made(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BLOCKEXPORT_CACHE", str(tmp_path))
    tokens = load(bundle_folder, threads=1, operators="stock").generate([3, 1, 4], 8, stop_tokens=[]).tokens
    assert not (tmp_path / "packed").exists()
    made = load(bundle_folder, threads=1, operators="stock", packed=True)
    assert len(list((tmp_path / "packed").iterdir())) == 1
    found = load(bundle_folder, threads=1, operators="stock")
    for runtime in (made, found):
        path = runtime.engines._files["d3"].path
        assert path.is_relative_to(tmp_path / "packed")
        assert runtime.generate([3, 1, 4], 8, stop_tokens=[]).tokens == tokens
    without = load(bundle_folder, threads=1, operators="stock", packed=False)
    assert without.engines._files["d3"].path.parent == bundle_folder


def test_cuda_without_its_provider_is_named_and_the_processor_still_serves(bundle_folder: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(BackendUnavailableError, match="ort-gpu"):
        load(bundle_folder, device="cuda")
    assert load(bundle_folder, threads=1).generate([3, 1], 1, stop_tokens=[]).tokens


@pytest.mark.parametrize(("backend", "device"), [("tvm", "cpu"), ("onnxruntime", "tpu"), ("aotinductor", "cuda")])
def test_unknown_backends_and_devices_are_refused(backend: Any, device: Any, bundle_folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"{backend!r}.*{device!r}"):
        load(bundle_folder, backend=backend, device=device)


def test_a_level_that_finds_no_room_on_the_device_runs_on_the_processor(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(bundle_folder)
    others = OtherLevels(DeviceLevels("cpu", CPU), {"d4": bundle.engine_path("d4", "onnxruntime", "ort")})
    runtime = Runtime(bundle, threads=1, others=others)
    tokens = runtime.generate([3, 1], 4, stop_tokens=[]).tokens
    assert runtime.engines.operators("d4") == "cuda"
    runtime.unload("d4")

    def refuse(*_: Any) -> None:
        msg = "out of memory"
        raise RuntimeError(msg)

    monkeypatch.setattr("blockexport.backends.onnxruntime.device._value", refuse)
    others = OtherLevels(DeviceLevels("cpu", CPU), others.paths)
    fallen = Runtime(bundle, threads=1, others=others)
    assert fallen.generate([3, 1], 4, stop_tokens=[]).tokens == tokens
    assert fallen.engines.operators("d4") == "stock"

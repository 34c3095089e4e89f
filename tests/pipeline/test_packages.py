"""A bundle with packages: compiled once, then looked at from all sides."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import blockexport as bx
from blockexport.backends.aotinductor.levels import AotLevels
from blockexport.backends.aotinductor.weights import SharedWeights
from blockexport.bundle.reader import Bundle, open_bundle
from blockexport.core.engine import StepInputs, empty_rows
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.precision import Precision
from blockexport.errors import BackendUnavailableError, BundleError, ConfigError, ExportError, IntegrityError
from blockexport.models.loaded import wrap_module
from blockexport.pipeline.build import BuildOptions
from blockexport.pipeline.packages import Packages
from blockexport.runtime import compiled
from blockexport.runtime.compiled import open_packages, packages_of
from blockexport.runtime.verify import verify_bundle
from blockexport.testing.tiny_models import tiny_model

torch.set_num_threads(1)

LADDER = DepthLadder.from_masks([DepthMask.full(2), DepthMask((1,), 2)])
BACKENDS = ["onnxruntime", "aotinductor"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("packages") / "bundle"
    return bx.build(tiny_model("qwen2", 2), LADDER, backends=BACKENDS, out=folder)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(bundle.folder, tmp_path / "copy")
    return tmp_path / "copy"


def arguments(levels: AotLevels, path: Path) -> tuple[Any, StepInputs]:
    decoder = levels.decoder(path)
    rows = empty_rows(dict.fromkeys(decoder.blocks, (2, 8)), 1, 8, np.dtype(np.float32))
    return decoder.bind(rows), StepInputs.prompt(np.array([[3, 1, 4]]), np.array([3]))


@pytest.mark.slow
def test_every_level_is_proved_as_it_was_compiled(bundle: Bundle) -> None:
    for level in bundle.manifest.levels:
        checks = [record.check for record in level.parity if record.operators == "compiled"]
        assert checks == ["prefill", "decode", "padded", "chunked"]
        (engine,) = (engine for engine in level.engines if engine.backend == "aotinductor")
        assert engine.target == "cpu"
        assert engine.requires["torch"] == torch.__version__
        listed = {entry.path for entry in bundle.manifest.files}
        assert engine.path in listed


@pytest.mark.slow
def test_a_package_holds_no_weights(bundle: Bundle) -> None:
    weights = SharedWeights(bundle.weights_path).lend(["model.embed_tokens.weight"])
    row = weights["model.embed_tokens.weight"][7].numpy().tobytes()
    assert row in bundle.weights_path.read_bytes()
    for engine in packages_of(bundle).values():
        assert row not in (bundle.folder / engine.path).read_bytes()


@pytest.mark.slow
def test_levels_share_one_set_of_weights(bundle: Bundle) -> None:
    """Opened packages read the very memory they were lent: when it changes, so do all of their answers."""
    engines = packages_of(bundle)
    paths = {name: bundle.folder / engine.path for name, engine in engines.items()}
    levels = AotLevels(bundle.weights_path, {paths[name]: engine.signature for name, engine in engines.items()})
    bound = {name: arguments(levels, path) for name, path in paths.items()}
    before = {name: level.step(inputs).copy() for name, (level, inputs) in bound.items()}
    lent = levels.package(paths["d2"]).lent["model.norm.weight"]
    assert lent.data_ptr() == levels.package(paths["d1"]).lent["model.norm.weight"].data_ptr()
    lent.mul_(2)
    for name, (level, inputs) in bound.items():
        np.testing.assert_array_equal(level.step(inputs), 2 * before[name])


@pytest.mark.slow
def test_the_runtime_serves_packages_and_changes_levels(bundle: Bundle) -> None:
    switches = {3: "d1", 6: "d2"}
    runtime = bx.load(bundle.folder, backend="aotinductor", threads=1)
    ours = runtime.generate([3, 1, 4], 10, switches=switches, stop_tokens=[])
    assert [runtime.engines.operators(name) for name in ("d2", "d1")] == ["compiled", "compiled"]
    stock = bx.load(bundle.folder, operators="stock", threads=1)
    assert ours.tokens == stock.generate([3, 1, 4], 10, switches=switches, stop_tokens=[]).tokens
    assert ours.switches == ((3, "d1"), (6, "d2"))
    ragged = [[3, 1, 4], [5, 9]]
    assert runtime.generate(ragged, 6, stop_tokens=[]).tokens == stock.generate(ragged, 6, stop_tokens=[]).tokens


@pytest.mark.slow
def test_verify_looks_at_packages(bundle: Bundle) -> None:
    found = {check.id: check.status for check in verify_bundle(bundle.folder)}
    assert {found[f"parity:{level}:compiled:decode"] for level in ("d2", "d1")} == {"ok"}


@pytest.mark.slow
def test_an_altered_package_is_not_opened_even_unverified(
    bundle: Bundle, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / packages_of(bundle)["d1"].path
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr(AotLevels, "package", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(IntegrityError, match=r"d1\.cpu\.pt2"):
        bx.load(copied, backend="aotinductor", verify=False)
    with pytest.raises(IntegrityError):
        bx.load(copied, backend="aotinductor")


@pytest.mark.slow
def test_a_package_of_another_torch_is_refused_and_the_graphs_still_run(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "host_demands", lambda: packages_of(bundle)["d2"].requires | {"torch": "99.0"})
    with pytest.raises(BackendUnavailableError, match=r"99\.0.*onnxruntime"):
        bx.load(bundle.folder, backend="aotinductor")
    (check,) = (check for check in verify_bundle(bundle.folder) if check.id == "parity:compiled")
    assert (check.status, "99.0" in check.why) == ("not run", True)
    assert len(bx.load(bundle.folder).generate([3, 1], 2, stop_tokens=[]).tokens) == 2


@pytest.mark.slow
def test_a_level_that_does_not_open_falls_back_to_its_graph(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        msg = "no memory"
        raise BundleError(msg)

    monkeypatch.setattr(AotLevels, "package", refuse)
    runtime = bx.load(bundle.folder, backend="aotinductor")
    assert len(runtime.generate([3, 1], 2, stop_tokens=[]).tokens) == 2
    assert runtime.engines.operators("d2") == "stock"


@pytest.mark.slow
def test_what_is_no_package_is_an_error_of_ours(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"nothing")
    levels = AotLevels(bundle.weights_path, {tmp_path / "x.pt2": packages_of(bundle)["d1"].signature})
    with pytest.raises(BundleError, match=r"x\.pt2"):
        levels.decoder(tmp_path / "x.pt2")


def test_a_bundle_without_packages_says_how_to_get_some(tmp_path: Path) -> None:
    from blockexport.testing.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="--backend aotinductor"):
        open_packages(open_bundle(tmp_path / "bundle"))


def test_no_compiler_is_said_before_anything_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendUnavailableError, match="no-such-compiler"):
        Packages.of(wrap_module(tiny_model("qwen2", 2)), LADDER, Precision.parse("fp32"), "cpu")


@pytest.mark.parametrize(("precision", "device", "error"), [("int8", "cpu", "int8"), ("fp32", "tpu", "tpu")])
def test_what_cannot_be_compiled_is_refused(precision: str, device: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Packages.of(wrap_module(tiny_model("qwen2", 2)), LADDER, Precision.parse(precision), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        Packages.of(wrap_module(tiny_model("qwen2", 2)), LADDER, Precision.parse("fp32"), "cuda")


def test_experts_are_refused() -> None:
    with pytest.raises(ExportError, match="experts"):
        Packages.of(wrap_module(tiny_model("mixtral", 2)), LADDER, Precision.parse("fp32"), "cpu")


def test_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="aotinductor"):
        bx.build(tiny_model("qwen2", 2), LADDER, backends=["tvm"], out=tmp_path / "b", options=BuildOptions())

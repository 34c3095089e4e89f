"""The device path, run where every host can run it: the device is the processor."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from blockexport.backends.onnxruntime import device as module
from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.device import DeviceDecoder, DeviceLevels, device_rows
from blockexport.backends.onnxruntime.providers import CPU, cuda, require_in_use, require_provider
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.core.engine import StepInputs, empty_rows
from blockexport.errors import BackendUnavailableError, BundleError, RequestError
from blockexport.export.cut import cut
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower.ort import lower
from blockexport.export.trace import block_unit, trace
from blockexport.models.loaded import wrap_module
from blockexport.testing.tiny_models import tiny_model

KEPT = {"d3": (0, 1, 2), "d2": (0, 2)}
LAYOUT = dict.fromkeys(range(3), (2, 8))
PROMPT = StepInputs.prompt(np.array([[3, 1, 4, 1]]), np.array([4]))
STEP = StepInputs.following(np.array([[5]]), np.array([4]))
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("device")
    marked = lower(trace(wrap_module(tiny_model("llama", 3))))
    locations = write_weights(folder / WEIGHTS_FILE, shared_tensors(marked))
    paths = {name: folder / f"{name}.ort.onnx" for name in KEPT}
    for name, kept in KEPT.items():
        save(cut(marked, [block_unit(block) for block in range(3) if block not in kept]), paths[name], locations)
    return paths


def test_levels_on_a_device_answer_as_those_on_the_processor(graphs: dict[str, Path]) -> None:
    levels = DeviceLevels("cpu", CPU)
    rows, device = empty_rows(LAYOUT, 1, 8, np.dtype(np.float32)), device_rows(LAYOUT, 1, 8, "cpu")
    # The prompt at the one level and a step at the other: both are tied to the same rows.
    for name, inputs in (("d3", PROMPT), ("d2", STEP)):
        expected = OrtDecoder(graphs[name], threads=1).bind(rows).step(inputs)
        found = DeviceDecoder(levels.session(graphs[name]), device, "cpu").step(inputs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


def test_a_level_may_also_be_bound_to_arrays_of_the_host(graphs: dict[str, Path]) -> None:
    rows, others = (empty_rows(LAYOUT, 1, 8, np.dtype(np.float32)) for _ in range(2))
    found = DeviceLevels("cpu", CPU).decoder(graphs["d2"]).bind(rows).step(PROMPT)
    np.testing.assert_array_equal(found, OrtDecoder(graphs["d2"]).bind(others).step(PROMPT))


def test_the_weights_are_put_on_the_device_once(graphs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = module._value

    def count(array: Any, device: str) -> Any:
        made.append(array.nbytes)
        return original(array, device)

    monkeypatch.setattr(module, "_value", count)
    levels = DeviceLevels("cpu", CPU)
    levels.session(graphs["d3"])
    first = sum(made)
    levels.session(graphs["d2"])
    assert sum(made) == first > 10_000


def test_no_room_on_the_device_is_an_error_of_ours(graphs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        msg = "CUDA out of memory"
        raise RuntimeError(msg)

    monkeypatch.setattr(module, "_value", refuse)
    with pytest.raises(BundleError, match=r"CUDA out of memory.*cpu"):
        DeviceLevels("cpu", CPU).decoder(graphs["d3"])


def test_a_failing_step_is_an_error_of_ours(graphs: dict[str, Path]) -> None:
    level = DeviceDecoder(DeviceLevels("cpu", CPU).session(graphs["d3"]), device_rows(LAYOUT, 1, 2, "cpu"), "cpu")
    with pytest.raises(RequestError, match="fewer tokens"):
        level.step(StepInputs.prompt(np.full((1, 2), 10_000), np.array([2])))


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA provider")
def test_without_the_provider_the_package_is_named(graphs: dict[str, Path]) -> None:
    with pytest.raises(BackendUnavailableError, match=r"no CUDAExecutionProvider.*ort-gpu"):
        DeviceLevels().decoder(graphs["d3"])


def test_a_provider_that_is_listed_and_not_used_is_refused() -> None:
    """What onnxruntime-gpu does without a driver: it lists CUDA, opens the session, and computes on the processor."""
    runtime = SimpleNamespace(__version__="1", get_available_providers=lambda: ["CUDAExecutionProvider"])
    require_provider(runtime, cuda())
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match=r"would use CPUExecutionProvider"):
        require_in_use(session, cuda())


def test_what_cuda_is_asked_for() -> None:
    assert cuda().session_entries == {}
    strict = cuda(capture=True, only_cuda=True)
    assert strict.session_entries == {"session.disable_cpu_ep_fallback": "1"}
    assert (strict.options["use_tf32"], strict.options["enable_cuda_graph"]) == ("0", "1")

"""ONNX Runtime on the GPU: every level by the parity gate, over one copy of the weights, then its speed."""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from blockexport.backends.onnxruntime.device import DeviceDecoder, DeviceLevels, DeviceRow, device_rows
from blockexport.backends.onnxruntime.providers import cuda, require_provider
from blockexport.backends.onnxruntime.session import import_onnxruntime
from blockexport.bundle.layout import PARITY_FILE
from blockexport.bundle.manifest import LevelEntry
from blockexport.bundle.reader import Bundle
from blockexport.core.engine import StepInputs
from blockexport.errors import BackendUnavailableError, BundleError
from blockexport.export.parity import check_decoder
from blockexport.gpu_report.driver import free_bytes
from blockexport.gpu_report.finding import Finding, verdict
from blockexport.gpu_report.models import SMALL_LADDER, small_decoder
from blockexport.pipeline.build import build
from blockexport.runtime.proof import recorded_cases

_NAME = "onnxruntime-cuda"
# 0.8 GB of weights: more than what a session takes for itself.
_HIDDEN = 2048
_CAPACITY, _REPEATS = 256, 50


def run() -> Iterator[Finding]:
    """Numerics and memory of four levels, then their speed on rows that lie on the GPU."""
    require_provider(import_onnxruntime(), cuda())
    with tempfile.TemporaryDirectory() as name:
        bundle = build(small_decoder(_HIDDEN).module, SMALL_LADDER, out=Path(name) / "bundle")
        levels, sessions, used = DeviceLevels(), {}, [free_bytes()]
        paths = {level.name: bundle.engine_path(level.name, "onnxruntime", "ort") for level in bundle.manifest.levels}
        for level in bundle.manifest.levels:
            sessions[level.name] = levels.session(paths[level.name])
            used.append(free_bytes())
            yield _numerics(bundle, level, levels, paths[level.name])
        yield _memory(bundle, used)
        spec = bundle.manifest.model
        rows = device_rows(spec.kv_layout(range(spec.num_blocks)), 1, _CAPACITY)
        for level in bundle.manifest.levels:
            yield _speed(level, DeviceDecoder(sessions[level.name], rows), rows, bundle)
        yield _whole_graph_on_gpu(paths[bundle.manifest.levels[0].name])


def _numerics(bundle: Bundle, level: LevelEntry, levels: DeviceLevels, path: Path) -> Finding:
    cases = recorded_cases(bundle.folder / PARITY_FILE)[level.name]
    records = check_decoder(levels.decoder(path), bundle.manifest.model.kv_layout(level.kept), cases)
    failures = [f"{record.check}: {record.max_abs_err:.3g}" for record in records if not record.passed]
    worst = max(record.max_abs_err / record.tolerance for record in records)
    return verdict(f"{_NAME}:{level.name}", "gpu", failures, {"error_over_tolerance": worst})


def _memory(bundle: Bundle, free: list[int]) -> Finding:
    """A further level must take less than a copy of its weights; how much, stands in the report."""
    taken = [before - after for before, after in pairwise(free)]
    whole = bundle.manifest.weights.size_bytes
    shares = [level.depth / bundle.manifest.num_blocks for level in bundle.manifest.levels]
    failures = [
        f"level {number + 1} takes {extra / 1e6:.0f} MB more"
        for number, (extra, share) in enumerate(zip(taken, shares, strict=True))
        if number and extra >= whole * share
    ]
    metrics = {"taken_bytes": taken, "weights_bytes": whole, "four_over_one": sum(taken) / taken[0]}
    return verdict(f"{_NAME}:one-set-of-weights", "gpu", failures, metrics)


def _speed(level: LevelEntry, decoder: DeviceDecoder, rows: dict[int, DeviceRow], bundle: Bundle) -> Finding:
    vocab = bundle.manifest.model.vocab_size
    prompt = np.arange(_CAPACITY // 2)[None] % vocab
    decoder.step(StepInputs.prompt(prompt, np.array([prompt.shape[1]])))
    inputs = StepInputs.following(np.array([[0]]), np.array([prompt.shape[1]]))
    times = []
    logits = decoder.step(inputs)
    for index in range(_REPEATS):
        inputs.input_ids.fill(index * 97 % vocab)
        begin = perf_counter()
        logits = decoder.step(inputs)
        times.append((perf_counter() - begin) * 1e3)
    failures = [] if np.isfinite(logits).all() else ["logits are not finite"]
    # With tokens going there and logits coming back, as a caller sees it.
    return verdict(f"{_NAME}:{level.name}-speed", "gpu", failures, {"step_ms": median(times), "rows": len(rows)})


def _whole_graph_on_gpu(path: Path) -> Finding:
    """Whether not one node needs the processor; arithmetic on shapes may, and that is no failure."""
    try:
        DeviceLevels(providers=cuda(only_cuda=True)).session(path)
    except (BundleError, BackendUnavailableError) as error:
        return Finding(f"{_NAME}:no-node-on-cpu", "gpu", "not_run", f"some nodes stay on the processor: {error}")
    return Finding(f"{_NAME}:no-node-on-cpu", "gpu", "pass")

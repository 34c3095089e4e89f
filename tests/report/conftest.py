"""A bundle to report on, written without building anything: its figures are made up, its graphs are no graphs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blockexport.bundle.layout import WEIGHTS_FILE, engine_file
from blockexport.bundle.manifest import EngineEntry, LevelEntry, ManifestDraft, ParityRecord
from blockexport.bundle.reader import open_bundle
from blockexport.bundle.weights import write_weights
from blockexport.bundle.writer import BundleWriter
from blockexport.core.hardware import HostFingerprint
from blockexport.core.latency import DistributionSummary, LatencyPoint, LatencyProfile
from blockexport.core.model import KvSpec, ModelSpec
from blockexport.core.quality import MetricValue, Quality
from blockexport.core.scores import BlockScores
from blockexport.core.signature import Signature, TensorSpec
from blockexport.core.study import FULL, Study, StudyData, StudyRow
from blockexport.profiling.fit import fit_latency
from blockexport.report import material
from blockexport.report.memory import MemoryUse
from blockexport.report.switching import SwitchedPair, Switching

NUM_BLOCKS = 4
MASKS = {"d4": (0, 1, 2, 3), "d3": (0, 1, 3), "d1": (0,)}
DIGEST = "5" * 64
MEMORY = MemoryUse(none_bytes=31_000_000, deepest_bytes=44_000_000, all_bytes=47_000_000, num_levels=3)


def quality(kept: tuple[int, ...]) -> Quality:
    share = len(kept) / NUM_BLOCKS
    return Quality(
        {
            "bits_per_byte": MetricValue(2.0 - share + 1 / 7, 0.03, 11, False),
            "exact_match": MetricValue(0.9 * share + 1 / 70, 0.02, 40, True),
            "exact_match/copy": MetricValue(share - 1 / 90, 0.01, 20, True),
            "exact_match/a<b": MetricValue(0.8 * share, 0.015, 20, True),
        }
    )


def _level(name: str, kept: tuple[int, ...], measured: bool) -> LevelEntry:
    tensor = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "tokens"))
    engine = EngineEntry(
        backend="onnxruntime",
        target="ort",
        path=engine_file(name, "ort"),
        signature=Signature(inputs=(tensor,), outputs=(tensor,)),
    )
    parity = tuple(
        ParityRecord(check=check, max_abs_err=error / 7, tolerance=3e-5, tokens_equal=True, passed=True)
        for check, error in (("prefill", 1e-5), ("decode", 2e-5))
    )
    return LevelEntry(
        name=name,
        depth=len(kept),
        kept=kept,
        skipped=tuple(i for i in range(NUM_BLOCKS) if i not in kept),
        engines=(engine,),
        parity=parity,
        quality=quality(kept).to_json() if measured else {},
    )


@pytest.fixture
def write_bundle(tmp_path: Path) -> Callable[..., Path]:
    """`write_bundle(model="tiny", measured=True, attached={})` writes a bundle and gives its folder."""

    def write(
        model: str = "tiny", measured: bool = True, attached: dict[str, bytes] | None = None, **overrides
    ) -> Path:
        spec = ModelSpec(
            name=model,
            architecture="TinyForCausalLM",
            kind="decoder",
            num_blocks=NUM_BLOCKS,
            digest=DIGEST,
            kv=(KvSpec(num_heads=1, head_dim=4),) * NUM_BLOCKS,
            vocab_size=32,
        )
        fields = {
            "model": spec,
            "num_blocks": NUM_BLOCKS,
            "strategy": "greedy",
            "notes": ("a note",),
            "levels": tuple(_level(name, kept, measured) for name, kept in MASKS.items()),
            "tools": {"onnx": "1.23.2"},
            "seeds": {"parity": 7},
            "data": {"quality": {"name": "given", "digest": "a" * 64, "samples": 51}},
        }
        out = tmp_path / "bundle"
        with BundleWriter(out) as writer:
            write_weights(writer.path_for(WEIGHTS_FILE), {"embed": np.arange(4000, dtype=np.float32)})
            for name, kept in MASKS.items():
                writer.add_bytes(engine_file(name, "ort"), b"graph" * len(kept))
            for path, content in (attached or {}).items():
                writer.add_bytes(path, content)
            writer.commit(ManifestDraft(**(fields | overrides)))
        return out

    return write


@pytest.fixture
def write_profile() -> Callable[..., LatencyProfile]:
    """`write_profile(folder, host=None, p95=1.2)` puts a made-up profile into a bundle."""

    def write(folder: Path, host: HostFingerprint | None = None, p95: float = 1.2) -> LatencyProfile:
        bundle = open_bundle(folder)
        host = host or HostFingerprint.detect()
        points = [
            _point(name, len(kept), phase, new, p95)
            for name, kept in MASKS.items()
            for phase, new in (("prefill", 64), ("decode", 1))
        ]
        profile = LatencyProfile(
            host=host,
            bundle_digest=bundle.manifest.digest,
            threads=2,
            kind="decoder",
            quick=True,
            points=tuple(points),
            fit=fit_latency(points),
        )
        bundle.write_profile(host.key, profile.to_json())
        return profile

    return write


def _point(name: str, depth: int, phase: str, new: int, p95: float) -> LatencyPoint:
    median = (0.31 + depth) * (1 if phase == "decode" else 9)
    summary = DistributionSummary(
        n=12, min_ms=median * 0.9, p50_ms=median, p95_ms=median * p95, mean_ms=median, std_ms=0.1
    )
    kv = 64 if phase == "decode" else 0
    return LatencyPoint(level=name, depth=depth, phase=phase, batch=1, new_tokens=new, kv_tokens=kv, summary=summary)


@pytest.fixture
def make_study() -> Callable[..., Study]:
    """`make_study(**overrides)` gives a study that fits the bundle."""

    def make(**overrides) -> Study:
        rows = [StudyRow(FULL, "", NUM_BLOCKS, MASKS["d4"], quality(MASKS["d4"]))]
        for strategy, method in (("top_k", "activation"), ("sequential", ""), ("greedy", "")):
            rows += [
                StudyRow(strategy, method, depth, tuple(range(depth)), quality(tuple(range(depth)))) for depth in (3, 1)
            ]
        scores = tuple(
            BlockScores(method, (9.0, 1.0, -0.5, float("inf")), (0.5, 0.25, 0.25, 0.0), (3,), DIGEST, num_samples=6)
            for method in ("activation", "loss_drop", "gradient", "attention")
        )
        fields = {
            "model": "tiny",
            "model_digest": DIGEST,
            "num_blocks": NUM_BLOCKS,
            "selection_data": StudyData("given", "b" * 64, 6),
            "test_data": StudyData("given", "c" * 64, 8),
            "seed": 66,
            "scores": scores,
            "rows": tuple(rows),
        }
        return Study(**(fields | overrides))

    return make


@pytest.fixture
def switching() -> Switching:
    """Every step up, passing over holes a little worse than running what is missing."""

    def worse(kept: tuple[int, ...], by: float) -> Quality:
        figures = quality(kept).metrics
        return Quality({name: dataclasses.replace(figure, value=figure.value + by) for name, figure in figures.items()})

    pairs = [
        SwitchedPair(before, after, quality(MASKS[before]), worse(MASKS[after], 1 / 17), worse(MASKS[after], 1 / 13))
        for before, after in (("d1", "d3"), ("d3", "d4"))
    ]
    return Switching("given", 9, tuple(pairs))


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryUse:
    """Made up too: these graphs cannot be opened."""
    monkeypatch.setattr(material, "measure_memory", lambda bundle, num_levels: MEMORY)
    return MEMORY

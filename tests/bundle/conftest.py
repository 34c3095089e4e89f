"""A small but complete bundle: two levels, shared weights, a tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blockexport.bundle.layout import WEIGHTS_FILE, engine_file
from blockexport.bundle.manifest import EngineEntry, LevelEntry, Manifest, ManifestDraft, ParityRecord
from blockexport.bundle.weights import write_weights
from blockexport.bundle.writer import BundleWriter
from blockexport.core.model import KvSpec, ModelSpec
from blockexport.core.quality import MetricValue, Quality
from blockexport.core.signature import Signature, TensorSpec

MakeDraft = Callable[..., ManifestDraft]
BuildBundle = Callable[..., Manifest]
SIGNATURE = Signature(
    inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", "tokens")),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", "tokens", 32)),),
)
# The primary metric comes first although it is not the first by name.
QUALITY = Quality({"exact_match": MetricValue(0.5, 0.01, 9, True), "accuracy/a": MetricValue(1.0, 0.0, 4, True)})


def _level(kept: tuple[int, ...], num_blocks: int) -> LevelEntry:
    name = f"d{len(kept)}"
    engine = EngineEntry(backend="onnxruntime", target="ort", path=engine_file(name, "ort"), signature=SIGNATURE)
    parity = ParityRecord(check="prefill", max_abs_err=1e-6, tolerance=1e-5, tokens_equal=True, passed=True)
    skipped = tuple(block for block in range(num_blocks) if block not in kept)
    return LevelEntry(
        name=name,
        depth=len(kept),
        kept=kept,
        skipped=skipped,
        engines=(engine,),
        parity=(parity,),
        quality=QUALITY.to_json(),
    )


def _draft(**overrides: Any) -> ManifestDraft:
    model = ModelSpec(
        name="tiny",
        architecture="TinyForCausalLM",
        kind="decoder",
        num_blocks=3,
        digest="0" * 64,
        kv=(KvSpec(num_heads=1, head_dim=4),) * 3,
        vocab_size=32,
    )
    fields: dict[str, Any] = {
        "model": model,
        "num_blocks": 3,
        "strategy": "top_k",
        "notes": ("for tests, with a ü",),
        "levels": (_level((0, 1, 2), 3), _level((0, 2), 3)),
        "tools": {"onnx": "1.23.2", "blockexport": "0.1.0"},
        "recipe": {"depths": [3, 2], "min_quality": None, "ratio": 0.5},
        "seeds": {"data": 7},
        "data": {"scoring": "a" * 64},
    }
    return ManifestDraft(**(fields | overrides))


def _build(out: Path, content: int = 0, **options: Any) -> Manifest:
    with BundleWriter(out, **options) as writer:
        tensors: dict[str, NDArray[Any]] = {
            "embed": np.full((4, 8), content, np.float32),
            "bias": np.arange(3, dtype=np.float16),
        }
        write_weights(writer.path_for(WEIGHTS_FILE), tensors)
        for level in ("d3", "d2"):
            writer.add_bytes(engine_file(level, "ort"), f"graph {level} {content}".encode())
        writer.add_bytes("tokenizer/tokenizer.json", b"{}")
        return writer.commit(_draft())


@pytest.fixture(scope="session")
def make_draft() -> MakeDraft:
    """`make_draft(**overrides)` gives a draft that fits the files of `build_bundle`."""
    return _draft


@pytest.fixture(scope="session")
def build_bundle() -> BuildBundle:
    """`build_bundle(out, content=0)` writes a bundle; another content gives other weights and graphs."""
    return _build


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A freshly written bundle."""
    _build(tmp_path / "bundle")
    return tmp_path / "bundle"

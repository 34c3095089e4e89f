"""The vision side alone: padding, windows, and a trace with any number of crops."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from blockexport.models.loaded import LoadedModel
from blockexport.models.loading import load_model
from blockexport.testing.naive_molmo import read_naive_molmo
from blockexport.testing.tiny_molmo import MolmoSizes, MolmoVariant, tiny_pictures, write_tiny_molmo

Models = Callable[[MolmoVariant], LoadedModel]
EXACT = 1e-12


def encode(model: LoadedModel, images: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
    module: Any = model.module
    with torch.no_grad():
        features: torch.Tensor = module.encode_images(images, masks)
    return features


@pytest.mark.parametrize(
    "sizes",
    [
        MolmoSizes(),
        MolmoSizes(crop_pixels=20, vision_blocks=3, feature_layers=(-1, 0, -2)),
        MolmoSizes(crop_pixels=4, vision_blocks=1, feature_layers=(-1,), vision_size=8, vision_heads=1),
    ],
    ids=["even", "odd grid, three layers", "one patch"],
)
def test_equals_the_second_computation(sizes: MolmoSizes, exactly: Any, tmp_path: Path) -> None:
    folder = write_tiny_molmo(tmp_path, "pre-norm", sizes)
    model, reference = load_model(folder), read_naive_molmo(folder)
    pictures = tiny_pictures(sizes, 3)
    ours = exactly(model)("encode_images", **pictures)[0].numpy()
    for crop in range(3):
        images, masks = (tensor[0, crop].double().numpy() for tensor in pictures.values())
        wanted = np.stack(reference.image_tokens(images, masks))
        assert np.abs(ours[crop] - wanted).max() <= EXACT * max(1.0, np.abs(wanted).max())


def test_a_crop_that_is_not_square(tmp_path: Path, exactly: Any) -> None:
    folder = write_tiny_molmo(tmp_path)
    entries = json.loads((folder / "config.json").read_text())
    entries["vision_backbone"]["image_default_input_size"] = [8, 32]
    (folder / "config.json").write_text(json.dumps(entries))
    model, reference = load_model(folder), read_naive_molmo(folder)
    images = tiny_pictures(MolmoSizes(), 1)["images"]
    wanted = np.stack(reference.image_tokens(images[0, 0].double().numpy(), None))
    ours = exactly(model)("encode_images", images=images)[0, 0].numpy()
    assert np.abs(ours - wanted).max() <= EXACT * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("variant", ["pre-norm", "mixture"])
def test_crops_of_padding_are_all_alike(variant: MolmoVariant, models: Models) -> None:
    model = models(variant)
    images = tiny_pictures(MolmoSizes(), 4)["images"]
    images[0, 1:] = -1
    masks = torch.ones(1, 4, 16)
    masks[0, 1:] = -1
    masks[0, 3] = 0
    features = encode(model, images, masks)[0]
    torch.testing.assert_close(features[1], features[2], atol=0, rtol=0)
    # -1 in a mask counts as partly covered, not as empty.
    assert (features[1] - features[3]).abs().max() > 1e-3
    masks[0, 3] = 0.5
    assert torch.equal(encode(model, images, masks)[0, 3], features[1])


def test_one_value_of_minus_one_makes_padding_for_mixtures_only(models: Models) -> None:
    """The two published codes differ here; each variant follows its own."""
    images = tiny_pictures(MolmoSizes(), 2)["images"]
    images[0, 1] = -1
    images[0, 0, 3, 7] = -1
    dense, mixture = (encode(models(variant), images)[0] for variant in ("pre-norm", "mixture"))
    assert (dense[0] - dense[1]).abs().max() > 1e-3
    assert torch.equal(mixture[0], mixture[1])


def test_no_mask_says_all_is_picture(models: Models) -> None:
    images = tiny_pictures(MolmoSizes(), 2)["images"]
    model = models("post-norm")
    assert torch.equal(encode(model, images), encode(model, images, torch.ones(1, 2, 16)))


def test_crops_do_not_see_one_another(models: Models, exactly: Any) -> None:
    call, pictures = exactly(models("pre-norm")), tiny_pictures(MolmoSizes(), 3)
    together = call("encode_images", **pictures)
    scale = float(together.abs().max())
    for crop in range(3):
        alone = call("encode_images", **{name: tensor[:, crop : crop + 1] for name, tensor in pictures.items()})
        torch.testing.assert_close(together[:, crop], alone[:, 0], atol=EXACT * scale, rtol=0)


class _Encode(nn.Module):
    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.model: Any = model.module

    def forward(self, images: torch.Tensor, image_masks: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model.encode_images(images, image_masks)
        return features


class _Embed(_Encode):
    def forward(self, tokens: torch.Tensor, features: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        embedded: torch.Tensor = self.model.embed(tokens, features, indices)
        return embedded


def test_traces_with_any_number_of_crops(models: Models, batch: dict[str, Any]) -> None:
    model, sizes = models("pre-norm"), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    example = (batch["images"][:2], batch["image_masks"][:2])
    program = torch.export.export(_Encode(model), example, dynamic_shapes=(sizes, sizes), strict=False).module()
    for num_crops in (1, 2, 5):
        pictures = tuple(tiny_pictures(MolmoSizes(), num_crops).values())
        assert torch.equal(program(*pictures), encode(model, *pictures))
    features = encode(model, *example)
    inputs = (batch["input_ids"][:2], features, batch["image_input_idx"][:2])
    embed = torch.export.export(_Embed(model), inputs, dynamic_shapes=(sizes,) * 3, strict=False).module()
    tokens = torch.randint(-1, 105, (1, 9))
    other = (tokens, torch.randn(1, 2, 4, 32), torch.tensor([[[3, -1, -100, 8], [0, 1, 2, 5]]]))
    module: Any = model.module
    assert torch.equal(embed(*other), module.embed(*other))

"""Qwen2-VL in the seam: its tower picture by picture, its positions, the one size of picture that a bundle reads."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexport.core.masks import DepthMask
from blockexport.core.positions import PositionShifts
from blockexport.errors import ModelSupportError
from blockexport.masking.made_up import MadeUpPrompts
from blockexport.masking.masked import masked
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.scoring.score import score
from blockexport.testing.tiny_vlms import IMAGE_TOKEN, tiny_qwen2_vl

GRID = (2, 3)
POOLED = GRID[0] * GRID[1]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return wrap_module(tiny_qwen2_vl())


def test_what_it_says_of_itself(model: LoadedModel) -> None:
    vision = model.spec.vision
    assert vision is not None
    assert (model.num_blocks, model.spec.block_path) == (4, "model.language_model.layers")
    assert (vision.num_blocks, vision.block_path) == (3, "model.visual.blocks")
    assert (vision.grid, vision.num_pooled, vision.image_shape) == (GRID, POOLED, (24, 24))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=3), st.integers(0, 3))
def test_positions_are_those_of_the_model(model: LoadedModel, words: list[list[int]], pad: int) -> None:
    """Rows of words, in front of each picture so many, and behind the last one more."""
    rows = [[kind for count in row for kind in [0] * count + [1] * POOLED] + [0] for row in words]
    width = max(map(len, rows)) + pad
    kinds = np.array([[0] * (width - len(row)) + row for row in rows])
    real = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    places = [np.flatnonzero(row).reshape(-1, POOLED) for row in kinds]
    crops = [np.stack([np.full(POOLED, row), columns], -1) for row, found in enumerate(places) for columns in found]
    module: Any = model.module
    grids = torch.tensor([[1, 4, 6]]).repeat(len(crops), 1)
    tokens, mask = torch.from_numpy(kinds), torch.from_numpy(real)
    wanted, deltas = module.model.get_rope_index(tokens, tokens, image_grid_thw=grids, attention_mask=mask)
    shifts = PositionShifts.of_places(np.array(crops, np.int64).reshape(-1, POOLED, 2), GRID, len(rows))
    found = (real.cumsum(1) - 1) + shifts.columns(0, width)
    assert (found == wanted.numpy())[:, real != 0].all()
    assert shifts.behind.tolist() == deltas[:, 0].tolist()


def test_crops_as_a_batch_are_what_the_model_makes_of_pictures_one_by_one(model: LoadedModel) -> None:
    module: Any = model.module
    images = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0))
    side = model.vision_side
    assert side is not None
    for mask in (DepthMask.full(3), DepthMask.full(3).without(0)):
        with masked(side, mask), torch.no_grad():
            found = side(images).last_hidden_state
            for image, tokens in zip(images, found, strict=True):
                alone = module.get_image_features(image, torch.tensor([[1, 4, 6]])).pooler_output[0]
                assert tokens == pytest.approx(alone, abs=1e-6)


def test_blocks_are_scored_on_batches_with_pictures(model: LoadedModel) -> None:
    prompts = MadeUpPrompts.with_pictures(model.spec, (7, 5, 9), np.random.default_rng(0))
    real = np.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    batch = {"input_ids": prompts.tokens, "attention_mask": real.astype(np.int64), **prompts.pictures}
    inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
    is_word = torch.from_numpy(real) & (inputs["input_ids"] != IMAGE_TOKEN)
    data = [inputs | {"labels": inputs["input_ids"].where(is_word, -100)}]
    full = DepthMask.full(4)
    for vision, num_blocks in ((False, 4), (True, 3)):
        found = score(model, method="loss_drop", data=data, vision=vision)
        assert len(found.scores) == num_blocks
        assert all(found.scores)
    with torch.no_grad():
        whole = run_model(model, inputs).logits
        with masked(model, full.without(1)):
            less = run_model(model, inputs).logits
        black = run_model(model, inputs | {"images": inputs["images"] * 0}).logits
    assert not torch.allclose(whole, less)
    seen = torch.from_numpy(real)[:2]
    assert not torch.allclose(whole[:2][seen], black[:2][seen])
    assert torch.equal(whole[2], black[2])


def test_the_size_of_pictures(model: LoadedModel) -> None:
    module: Any = tiny_qwen2_vl(1, 1)
    tower = module.config.vision_config
    del tower.image_size
    published = wrap_module(module).spec.vision
    assert published is not None
    assert published.grid == (16, 16)
    for size in (6, [8, 10], [8, 8, 8], 0.5, [-4, 4]):
        tower.image_size = size
        with pytest.raises(ModelSupportError, match="multiples of 4"):
            wrap_module(module)

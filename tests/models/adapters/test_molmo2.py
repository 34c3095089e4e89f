"""Molmo2 in the seam: its crops, the windows of its pooling, and which of its tokens see one another."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.molmo2.image_processing_molmo2 import arange_for_pooling

from blockexport.core.masks import DepthMask
from blockexport.masking.made_up import MadeUpPrompts
from blockexport.masking.masked import masked
from blockexport.models.adapters.molmo2 import Molmo2Adapter, _windows
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.scoring.score import score
from blockexport.testing.tiny_models import VOCAB_SIZE
from blockexport.testing.tiny_vlms import tiny_molmo2


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return wrap_module(tiny_molmo2())


def test_what_it_says_of_itself(model: LoadedModel) -> None:
    vision = model.spec.vision
    assert vision is not None
    assert (model.num_blocks, model.spec.block_path) == (4, "model.language_model.layers")
    assert (model.spec.vocab_size, model.spec.num_extra_tokens) == (VOCAB_SIZE, 12)
    # The last block of the tower is not read.
    assert (vision.num_blocks, vision.block_path) == (3, "model.vision_tower.layers")
    assert (vision.num_pooled, vision.image_shape, vision.joins) == (4, (9, 27), "add")
    assert vision.mutual_tokens == tuple(range(VOCAB_SIZE, VOCAB_SIZE + 7))


@pytest.mark.parametrize("size", [(9, 9), (12, 9), (12, 6), (3, 15)])
def test_windows_are_those_of_the_preprocessing(size: tuple[int, int]) -> None:
    tower = tiny_molmo2(1, 2).config.vision_config
    tower.image_size = list(size)
    rows, columns = size[0] // 3, size[1] // 3
    wanted, *_ = arange_for_pooling(torch.arange(rows * columns).reshape(rows, columns), 2, 2)
    assert torch.equal(_windows(tower), wanted)


def test_crops_as_a_batch_are_what_the_model_makes_of_them(model: LoadedModel) -> None:
    module: Any = model.module
    side = model.vision_side
    assert side is not None
    images = torch.randn(3, 9, 27, generator=torch.Generator().manual_seed(0))
    windows, _, _ = arange_for_pooling(torch.arange(9).reshape(3, 3), 2, 2)
    for mask in (DepthMask.full(3), DepthMask.full(3).without(1)):
        with masked(side, mask), torch.no_grad():
            found = side(images).last_hidden_state
            for image, tokens in zip(images, found, strict=True):
                (alone,) = module.get_image_features(image[None], windows, torch.tensor([[2, 2, 0, 0]])).pooler_output
                assert tokens == pytest.approx(alone, abs=1e-7)


def test_tokens_around_pictures_see_one_another_too(model: LoadedModel) -> None:
    """What a picture's first token gives depends on the token behind the picture, if that belongs to it."""
    start, end, patch = VOCAB_SIZE, VOCAB_SIZE + 1, VOCAB_SIZE + 2
    columns = torch.tensor([[[2, 3, 4, 5]]])
    images = torch.randn(1, 1, 9, 27, generator=torch.Generator().manual_seed(1))

    def first_of_picture(last: int) -> torch.Tensor:
        tokens = torch.tensor([[3, start, *[patch] * 4, last, 5]])
        logits: torch.Tensor = run_model(
            model, {"input_ids": tokens, "images": images, "image_input_idx": columns}
        ).logits[0, 1]
        return logits

    with torch.no_grad():
        assert not torch.allclose(first_of_picture(end), first_of_picture(start))
        assert torch.equal(first_of_picture(4), first_of_picture(6))


def test_text_alone_is_seen_in_one_direction(model: LoadedModel) -> None:
    adapter = Molmo2Adapter()
    none = {"images": torch.zeros(1, 0, 9, 27), "image_input_idx": torch.zeros(1, 0, 4, dtype=torch.long)}
    assert adapter.picture_arguments(model.module, none, {"input_ids": torch.ones(1, 2, dtype=torch.long)}) == {}


def test_blocks_are_scored_on_batches_with_pictures(model: LoadedModel) -> None:
    prompts = MadeUpPrompts.with_pictures(model.spec, (7, 5, 9), np.random.default_rng(0))
    real = np.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    batch = {"input_ids": prompts.tokens, "attention_mask": real.astype(np.int64), **prompts.pictures}
    inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
    is_word = torch.from_numpy(real) & (inputs["input_ids"] < VOCAB_SIZE)
    data = [inputs | {"labels": inputs["input_ids"].where(is_word, -100)}]
    for vision, num_blocks in ((False, 4), (True, 3)):
        found = score(model, method="loss_drop", data=data, vision=vision)
        assert len(found.scores) == num_blocks
        assert all(found.scores)

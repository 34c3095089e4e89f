import numpy as np
import pytest

from blockexport.core.model import KvSpec, ModelSpec, VisionSpec
from blockexport.core.pictures import Pictures
from blockexport.masking.made_up import MadeUpPrompts, make_up_crops

ADDING = VisionSpec(
    num_blocks=1, block_path="tower", image_shape=(6, 5), mask_shape=(6,), num_pooled=4, hidden_size=3, joins="add"
)
REPLACING = ADDING.model_copy(update={"mask_shape": (), "joins": "replace", "image_token": 7})
ON_GRIDS = REPLACING.model_copy(update={"grid": (2, 2)})
LENGTHS = (5, 3, 6)


def prompts_of(vision: VisionSpec) -> MadeUpPrompts:
    spec = ModelSpec(
        name="tiny",
        architecture="Tiny",
        kind="decoder",
        num_blocks=1,
        digest="0",
        kv=(KvSpec(num_heads=1, head_dim=4),),
        vocab_size=11,
        vision=vision,
    )
    return MadeUpPrompts.with_pictures(spec, LENGTHS, np.random.default_rng(0))


@pytest.mark.parametrize("vision", [ADDING, REPLACING])
def test_rows_have_two_one_and_no_crop_and_their_words(vision: VisionSpec) -> None:
    prompts = prompts_of(vision)
    columns = prompts.pictures["image_input_idx"]
    placed = (columns >= 0).sum((1, 2))
    assert placed.tolist() == ([8, 4, 0] if vision is REPLACING else [6, 4, 0])
    assert prompts.lengths.tolist() == [length + count for length, count in zip(LENGTHS, placed, strict=True)]
    for row, places in enumerate(columns):
        found = sorted(places[places >= 0].tolist())
        assert found == list(range(1, 1 + len(found)))
        assert len(found) < prompts.lengths[row]
    is_crop = (columns != -1).any(-1)
    assert ((prompts.pictures["images"] == -1).all((2, 3)) == ~is_crop).all()


def test_a_word_parts_pictures_whose_positions_are_counted() -> None:
    prompts = prompts_of(ON_GRIDS)
    assert prompts.pictures["image_input_idx"][0].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert prompts.lengths.tolist() == [13, 7, 6]


@pytest.mark.parametrize("vision", [REPLACING, ON_GRIDS])
def test_a_token_that_stands_for_pictures_stands_for_nothing_else(vision: VisionSpec) -> None:
    prompts = prompts_of(vision)
    columns = prompts.pictures["image_input_idx"]
    for row, tokens in enumerate(prompts.tokens):
        real = tokens[: prompts.lengths[row]]
        assert np.flatnonzero(real == 7).tolist() == sorted(columns[row][columns[row] >= 0].tolist())


@pytest.mark.parametrize("vision", [ADDING, REPLACING, ON_GRIDS])
def test_padding_in_front_and_single_rows_say_the_same(vision: VisionSpec) -> None:
    prompts = prompts_of(vision)
    left, width = prompts.padded_left, prompts.tokens.shape[1]
    moved = left.pictures["image_input_idx"]
    for row, length in enumerate(prompts.lengths.tolist()):
        real = prompts.tokens[row, :length]
        assert left.tokens[row, width - length :].tolist() == real.tolist()
        places = prompts.pictures["image_input_idx"][row]
        assert (moved[row][places >= 0] == places[places >= 0] + width - length).all()
        alone = prompts.row(row)
        assert alone.tokens.tolist() == [real.tolist()]
        pictures = Pictures.of_batch(alone.pictures)
        assert pictures is not None
        assert len(pictures.images) == (2, 1, 0)[row]


def test_shares_of_patches_take_every_form_that_preprocessing_gives() -> None:
    inputs = make_up_crops(ADDING, 4, np.random.default_rng(0))
    assert set(np.unique(inputs["image_masks"])) == {-1, 0, np.float32(0.4), 1}
    assert (inputs["image_masks"][1] == -1).all()
    assert set(make_up_crops(REPLACING, 2, np.random.default_rng(0))) == {"pixel_values"}

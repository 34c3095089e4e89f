"""Where pictures of a request go, and which requests are refused; no engine is run."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexport.core.model import KvSpec, ModelSpec, VisionSpec
from blockexport.core.pictures import Pictures
from blockexport.errors import RequestError
from blockexport.runtime.prompt_batch import PromptBatch

POOLED, HIDDEN, IMAGE_TOKEN = 2, 3, 9
ADDING = VisionSpec(
    num_blocks=1, block_path="tower", image_shape=(4, 5), mask_shape=(4,), num_pooled=POOLED, hidden_size=HIDDEN
)
REPLACING = ADDING.model_copy(update={"mask_shape": (), "joins": "replace", "image_token": IMAGE_TOKEN})


def spec_of(vision: VisionSpec | None) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        architecture="Tiny",
        kind="decoder",
        num_blocks=1,
        digest="0",
        kv=(KvSpec(num_heads=1, head_dim=4),),
        vocab_size=10,
        num_extra_tokens=2,
        vision=vision,
    )


def crops(*shape: int) -> Any:
    return np.arange(np.prod((*shape, 4, 5)), dtype=np.float32).reshape(*shape, 4, 5)


def batch(
    tokens: Any, images: Any = None, masks: Any = None, places: Any = None, *, vision: VisionSpec | None = ADDING
) -> PromptBatch:
    return PromptBatch.of(spec_of(vision), tokens, None, images, masks, places)


def pictures(*args: Any, **options: Any) -> Pictures:
    found = batch(*args, **options).pictures
    assert found is not None
    return found


def test_a_batch_is_padded_with_minus_one_wherever_it_has_to_be() -> None:
    tokens = np.array([[-1, 3, 4, 5], [6, 7, -1, 11]])
    places = np.array([[[1, 3], [-1, -1]], [[-100, 3], [0, 1]]])
    found = batch(tokens, crops(2, 2), np.ones((2, 2, 4)), places)
    assert found.tokens.tolist() == [[3, 4, 5], [6, 7, 11]]
    assert found.pictures is not None
    # The crop that no token joins is not even looked at.
    assert found.num_crops == 3
    assert found.pictures.places.tolist() == [[[0, 0], [0, 2]], [[1, -1], [1, 2]], [[1, 0], [1, 1]]]
    assert (found.pictures.images == crops(2, 2)[[0, 1, 1], [0, 0, 1]]).all()


def test_one_prompt_needs_no_batch_axis_and_masks_may_be_left_out() -> None:
    found = pictures([1, 2, 3], crops(1), None, np.array([[0, 1]]))
    assert found.image_masks is not None
    assert (found.image_masks == 1).all()
    assert found.places.tolist() == [[[0, 0], [0, 1]]]


def test_image_tokens_say_themselves_where_they_are() -> None:
    tokens = [[1, 9, 9, 2, 9, 9], [9, 9]]
    found = pictures(tokens, crops(2, 2), vision=REPLACING)
    assert found.places.tolist() == [[[0, 1], [0, 2]], [[0, 4], [0, 5]], [[1, 0], [1, 1]]]
    assert found.image_masks is None
    assert set(found.engine_inputs) == {"pixel_values"}


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.integers(0, 8), st.integers(0, 2**31))
def test_chunks_hold_all_image_tokens_once(columns: list[int], parted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2, len(columns))
    places = np.stack([rows, np.array(columns)], -1)[:, None]
    features = rng.standard_normal((len(columns), 1, HIDDEN)).astype(np.float32)
    tokens = Pictures(np.zeros((len(columns), 1), np.float32), None, places).image_tokens(features)
    found = []
    for row in (0, 1):
        for begin, end in ((0, parted), (parted, 8)):
            chunk = tokens.within(row, begin, end)
            assert (chunk.positions[:, 0] == 0).all()
            assert ((chunk.positions[:, 1] >= 0) & (chunk.positions[:, 1] < end - begin)).all()
            found += [
                (row, column + begin, *feature)
                for column, feature in zip(chunk.positions[:, 1].tolist(), chunk.features.tolist(), strict=True)
            ]
    whole = [(*place, *feature) for place, feature in zip(places[:, 0].tolist(), features[:, 0].tolist(), strict=True)]
    assert sorted(found) == sorted(whole)


@pytest.mark.parametrize(
    ("arguments", "vision", "message"),
    [
        ({"places": [[0, 1]]}, ADDING, "no picture is given"),
        ({"images": crops(1), "places": [[0, 1]]}, None, "reads text only"),
        ({"images": crops(1)}, ADDING, "without image_input_idx"),
        ({"images": crops(1), "places": [[0, 3]]}, ADDING, "prompts of 3 tokens"),
        ({"images": crops(1), "places": [[0.0, 1.0]]}, ADDING, "float64"),
        ({"images": crops(1), "places": [[0, 1], [0, 1]]}, ADDING, "must be \\(1, 1, 2\\)"),
        ({"images": crops(2, 1), "places": [[0, 1]]}, ADDING, "must be \\(1, crops, 4, 5\\)"),
        ({"images": np.zeros((1, 4)), "places": [[0, 1]]}, ADDING, "must be \\(1, crops, 4, 5\\)"),
        ({"images": crops(1), "masks": np.ones((1, 3)), "places": [[0, 1]]}, ADDING, "image_masks is"),
        ({"images": crops(1)}, REPLACING, "no prompt has a token 9"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], vision: VisionSpec | None, message: str) -> None:
    arguments = {name: np.asarray(value) for name, value in arguments.items()}
    with pytest.raises(RequestError, match=message):
        batch([1, 2, 3], **arguments, vision=vision)


def test_image_tokens_without_enough_crops_are_refused() -> None:
    with pytest.raises(RequestError, match="4 tokens 9 for 1 crops"):
        batch([9, 9, 9, 9], crops(1), vision=REPLACING)


def test_a_place_on_padding_is_refused() -> None:
    with pytest.raises(RequestError, match="on padding"):
        batch(np.array([[-1, 1, 2]]), crops(1, 1), None, np.array([[[0, 1]]]))


def test_text_stays_text() -> None:
    assert batch([1, 2, 3]).pictures is None
    # Padding of crops alone is no picture.
    assert batch([1, 2, 3], None, None, np.full((1, 1, 2), -1)).pictures is None

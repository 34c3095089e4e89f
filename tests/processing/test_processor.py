import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from blockexport.errors import ModelSupportError, RequestError
from blockexport.models.demos.digits_molmo.tokenizer import END_OF_TEXT, train_tokenizer
from blockexport.processing import PictureGeometry, num_image_tokens
from blockexport.processing.layout import DROPPED
from blockexport.processing.processor import MolmoProcessor, collate

SMALL = PictureGeometry(crop_size=24, patch_size=4, margins=(2, 2), max_crops=4)
TOKENIZER = train_tokenizer()
END = TOKENIZER.token_to_id(END_OF_TEXT)
PATCH = TOKENIZER.token_to_id("<im_patch>")
PROCESSOR = MolmoProcessor(TOKENIZER, SMALL, END)


def noise(width, height):
    return np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), np.uint8)


def words(tokens):
    return [TOKENIZER.id_to_token(token) for token in tokens]


def test_text_alone_is_the_end_token_and_the_template():
    inputs = PROCESSOR("Which digit?")
    assert set(inputs) == {"input_ids"}
    assert inputs["input_ids"][0] == END
    assert TOKENIZER.decode(inputs["input_ids"][1:].tolist()) == " User: Which digit? Assistant:"


def test_a_picture_stands_between_the_end_token_and_the_text():
    tokens = PROCESSOR("Which digit?", [noise(24, 24)])["input_ids"]
    row = ["<im_patch>"] * 3 + ["<im_col>"]
    view = ["<im_start>", *row * 3, "<im_end>"]
    assert words(tokens)[: 1 + 2 * len(view)] == [END_OF_TEXT, *view, *view]
    assert tokens[1 + 2 * len(view) :].tolist() == PROCESSOR.prompt_tokens("Which digit?")


@settings(max_examples=60)
@given(st.integers(1, 120), st.integers(1, 120))
def test_the_prediction_is_what_is_made(width, height):
    if max(width, height) > min(width, height) * SMALL.crop_size:
        with pytest.raises(RequestError, match="cannot be shown"):
            PROCESSOR("Which digit?", [noise(width, height)])
        return
    inputs = PROCESSOR("Which digit?", [noise(width, height)])
    num_text = 1 + len(PROCESSOR.prompt_tokens("Which digit?"))
    assert len(inputs["input_ids"]) - num_text == num_image_tokens(width, height, SMALL)
    crops = len(inputs["images"])
    assert inputs["images"].shape == (crops, 36, 48)
    assert inputs["image_masks"].shape == (crops, 36)
    assert inputs["image_input_idx"].shape == (crops, 9)
    assert (inputs["image_masks"][-1] == -1).all()
    placed = inputs["image_input_idx"][inputs["image_input_idx"] >= 0]
    assert sorted(placed) == np.flatnonzero(inputs["input_ids"] == PATCH).tolist()
    assert {name: array.dtype for name, array in inputs.items()} == {
        "input_ids": np.int64,
        "images": np.float32,
        "image_masks": np.float32,
        "image_input_idx": np.int64,
    }


def test_pictures_follow_one_another():
    first, second = noise(24, 24), noise(32, 24)
    both = PROCESSOR("Which digits?", [first, second])
    alone = [PROCESSOR("Which digits?", [picture]) for picture in (first, second)]
    for name in ("images", "image_masks"):
        np.testing.assert_array_equal(both[name], np.concatenate([inputs[name] for inputs in alone]))
    shift = num_image_tokens(24, 24, SMALL)
    moved = np.where(alone[1]["image_input_idx"] >= 0, alone[1]["image_input_idx"] + shift, DROPPED)
    np.testing.assert_array_equal(both["image_input_idx"], np.concatenate([alone[0]["image_input_idx"], moved]))
    assert set(both["input_ids"][both["image_input_idx"][both["image_input_idx"] >= 0]]) == {PATCH}


def test_picture_tokens_in_the_text_take_no_patch():
    """Whatever a user types, patches go where the processor put the picture."""
    plain = PROCESSOR("Which digit?", [noise(24, 24)])
    typed = PROCESSOR("Which <im_patch> digit?", [noise(24, 24)])
    np.testing.assert_array_equal(plain["image_input_idx"], typed["image_input_idx"])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(RequestError, match="give a question"):
        PROCESSOR(text, [noise(24, 24)])


def test_a_batch_is_padded_with_minus_one():
    rows = [PROCESSOR("Which digit?"), PROCESSOR("Sum?", [noise(24, 24)]), PROCESSOR("Which digit?", [noise(48, 24)])]
    batch = collate(rows)
    for name, array in batch.items():
        for row, stacked in zip(rows, array, strict=True):
            own = row.get(name, array[0, :0])
            np.testing.assert_array_equal(stacked[: len(own)], own)
            assert (stacked[len(own) :] == -1).all()
    assert batch["images"].shape[:2] == (3, 5)


def test_a_batch_of_text_has_no_pictures():
    assert set(collate([PROCESSOR("Which digit?"), PROCESSOR("Sum?")])) == {"input_ids"}


def write_folder(folder, **names):
    TOKENIZER.save(str(folder / "tokenizer.json"))
    if names:
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize(
    "names", [{}, {"eos_token": END_OF_TEXT}, {"bos_token": None, "eos_token": {"content": END_OF_TEXT}}]
)
def test_a_processor_is_read_from_a_folder(tmp_path, names):
    processor = MolmoProcessor.from_folder(write_folder(tmp_path, **names))
    assert processor.geometry == PictureGeometry()
    assert processor("Which digit?")["input_ids"][0] == END


def test_a_folder_that_is_none_of_molmo_is_refused(tmp_path):
    with pytest.raises(ModelSupportError, match=r"tokenizer\.json is no tokenizer"):
        MolmoProcessor.from_folder(tmp_path)
    with pytest.raises(ModelSupportError, match="names '<s>' as its end token"):
        MolmoProcessor.from_folder(write_folder(tmp_path, eos_token="<s>"))
    plain = Tokenizer.from_str(TOKENIZER.to_str().replace("<im_col>", "<im_row>"))
    with pytest.raises(ModelSupportError, match="has no <im_col>"):
        MolmoProcessor(plain, SMALL, END)

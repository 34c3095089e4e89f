from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.model import ModelSpec
from blockexport.errors import RequestError
from blockexport.runtime.prompts import (
    check_pixels,
    check_room,
    check_switches,
    pack_prompts,
    read_prompts,
    unpack_outputs,
)

SPEC = ModelSpec(
    name="tiny",
    architecture="A",
    kind="decoder",
    num_blocks=1,
    digest="0" * 64,
    block_path="blocks",
    vocab_size=50,
    context_tokens=8,
    output="logits",
    pad_token=7,
    image_shape=(1, 2, 3),
)


@pytest.mark.parametrize("prompts", [[3, 1, 2], (3, 1, 2), np.array([3, 1, 2]), [[3, 1, 2]], np.array([[3, 1, 2]])])
def test_one_prompt_in_any_form(prompts: object) -> None:
    tokens, lengths, real = pack_prompts(prompts, None, SPEC)
    assert (tokens.tolist(), lengths.tolist()) == ([[3, 1, 2]], [3])
    assert real.all()
    assert tokens.dtype == lengths.dtype == np.int64


def test_ragged_lists_are_padded_on_the_right_with_the_models_padding() -> None:
    tokens, lengths, real = pack_prompts([[1, 2, 3], [4], [5, 6]], None, SPEC)
    assert tokens.tolist() == [[1, 2, 3], [4, 7, 7], [5, 6, 7]]
    assert lengths.tolist() == real.sum(1).tolist() == [3, 1, 2]


@given(st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=8), min_size=1, max_size=4), st.booleans())
def test_padding_on_either_side_is_the_same_prompt(rows: list[list[int]], is_left: bool) -> None:
    width = max(map(len, rows)) + 1
    tokens, mask = np.full((len(rows), width), 49), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if is_left else slice(len(row))
        tokens[i, where], mask[i, where] = row, 1
    packed, lengths, real = pack_prompts(tokens, mask, SPEC)
    ragged, wanted, _ = pack_prompts(rows, None, SPEC)
    assert np.array_equal(packed, ragged)
    assert np.array_equal(lengths, wanted)
    assert np.array_equal(real, mask != 0)
    outputs = unpack_outputs(packed[:, :, None].astype(np.float32), real)
    assert np.array_equal(outputs[:, :, 0], np.where(mask, tokens, 0))


def test_reading_leaves_tokens_where_they_were() -> None:
    tokens, real = read_prompts(np.array([[9, 1, 2], [3, 4, 9]]), [[0, 1, 1], [1, 1, 0]], SPEC)
    assert tokens.tolist() == [[7, 1, 2], [3, 4, 7]]
    assert real.tolist() == [[False, True, True], [True, True, False]]


@pytest.mark.parametrize(
    ("prompts", "mask", "message"),
    [
        ([], None, "a prompt is empty"),
        ([[1], []], None, "a prompt is empty"),
        (np.zeros((0, 3), np.int64), None, "a prompt is empty"),
        ([[1, 2]], [[0, 0]], "a prompt is empty"),
        ([1] * 9, None, "the prompt has 9 tokens, but tiny places 8"),
        ([1, 50], None, r"token id 50 is outside the vocabulary of 50 \(0 to 49\)"),
        ([1, -1], None, "token id -1 is outside"),
        (np.array([1.0]), None, "prompts hold float64"),
        (np.zeros((1, 1, 1), np.int64), None, r"prompts hold int64 \(1, 1\)"),
        ([[1, 2]], [[1]], r"attention_mask is \(1, 1\), but the prompts are \(1, 2\)"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts: object, mask: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pack_prompts(prompts, mask, SPEC)


def test_a_token_that_is_padding_may_be_anything() -> None:
    tokens, _, _ = pack_prompts(np.array([[1, 999]]), [[1, 0]], SPEC)
    assert tokens.tolist() == [[1]]


def test_room_is_the_context() -> None:
    check_room(5, 3, SPEC)
    check_room(5000, 3000, SPEC.model_copy(update={"context_tokens": 0}))
    with pytest.raises(RequestError, match="5 prompt tokens and 4 new ones exceed the context of 8; ask for at most 3"):
        check_room(5, 4, SPEC)
    with pytest.raises(RequestError, match="max_new_tokens is 0"):
        check_room(5, 0, SPEC)


def test_switches_are_at_new_tokens() -> None:
    check_switches({0: "a", 3: "b"}, 4)
    for index in (-1, 4):
        with pytest.raises(RequestError, match=rf"a switch at new token {index}, but 4 are asked for \(0 to 3\)"):
            check_switches({index: "a"}, 4)


def test_pixels_have_the_models_shape() -> None:
    assert check_pixels(np.ones((2, 1, 2, 3), np.int64), SPEC).dtype == np.float32
    for shape in [(1, 2, 3), (0, 1, 2, 3), (2, 1, 2, 4)]:
        with pytest.raises(RequestError, match=r"tiny takes \(batch, 1, 2, 3\)"):
            check_pixels(np.ones(shape), SPEC)


@pytest.mark.parametrize("prompts", [[1.5], [[1.0, 2.0]], None, "text", [None], [[[1]]], np.zeros((1, 1, 1), np.int64)])
def test_what_are_no_tokens_is_refused(prompts: Any) -> None:
    with pytest.raises(RequestError, match="prompt"):
        read_prompts(prompts, None, SPEC)


def test_arrays_of_other_packages_are_taken() -> None:
    torch = pytest.importorskip("torch")
    for prompts in (torch.tensor([1, 2]), torch.tensor([[1, 2]]), [torch.tensor([1, 2])], (np.int64(1), np.int32(2))):
        tokens, real = read_prompts(prompts, None, SPEC)
        assert tokens.tolist() == [[1, 2]]
        assert real.all()

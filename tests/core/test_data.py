"""Samples, batches and datasets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.data import IGNORED_LABEL, Dataset, Sample, collate
from blockexport.errors import DataError


def text(tokens, *, labelled=True, metric="exact_match", group="all", num_bytes=0, choices=()):
    array = np.array(tokens, np.int64)
    return Sample({"input_ids": array}, array if labelled else None, metric, group, num_bytes, choices)


def about_pictures(tokens, num_crops):
    sample = text(tokens)
    pictures = {
        "images": np.ones((num_crops, 4, 3), np.float32),
        "image_masks": np.ones((num_crops, 4), np.float32),
        "image_input_idx": np.ones((num_crops, 1), np.int64),
    }
    return Sample(sample.inputs | pictures, sample.labels, sample.metric, sample.group)


def image(value, label=None):
    labels = None if label is None else np.asarray(label)
    return Sample({"pixel_values": np.full((1, 2, 2), value, np.float32)}, labels, "accuracy", "images")


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_texts_are_padded_on_the_right(rows):
    batch = collate([text(row) for row in rows], pad_token=0)
    width = max(map(len, rows))
    for i, row in enumerate(rows):
        missing = width - len(row)
        assert batch.inputs["input_ids"][i].tolist() == row + [0] * missing
        assert batch.inputs["attention_mask"][i].tolist() == [1] * len(row) + [0] * missing
        assert batch.labels[i].tolist() == row + [IGNORED_LABEL] * missing


def test_the_pad_token_is_the_datasets():
    (batch,) = Dataset("texts", (text([1, 2]), text([3])), pad_token=7).batches(2)
    assert batch.inputs["input_ids"].tolist() == [[1, 2], [3, 7]]


def test_texts_without_labels_have_nothing_to_predict():
    batch = collate([text([1, 2], labelled=False), text([3])], 0)
    assert batch.labels.tolist() == [[IGNORED_LABEL] * 2, [3, IGNORED_LABEL]]


def test_rows_with_more_fewer_and_no_crops_are_padded_with_minus_one():
    batch = collate([about_pictures([1], 1), text([1, 2]), about_pictures([3], 2)], 0)
    shapes = {name: batch.inputs[name].shape for name in ("images", "image_masks", "image_input_idx")}
    assert shapes == {"images": (3, 2, 4, 3), "image_masks": (3, 2, 4), "image_input_idx": (3, 2, 1)}
    for name in shapes:
        sizes = [(row == 1).all(axis=tuple(range(1, row.ndim))).sum() for row in batch.inputs[name]]
        assert sizes == [1, 0, 2]
        assert set(np.unique(batch.inputs[name])) == {-1, 1}


def test_images_are_stacked():
    batch = collate([image(1, 4), image(2, 5)], 0)
    assert batch.inputs["pixel_values"].shape == (2, 1, 2, 2)
    assert batch.labels.tolist() == [4, 5]
    assert collate([image(1), image(2)], 0).labels is None


@given(st.integers(1, 12), st.integers(1, 13))
def test_batches_hold_every_sample_once_in_order(num_samples, batch_size):
    dataset = Dataset("texts", tuple(text([i + 1]) for i in range(num_samples)))
    batches = list(dataset.batches(batch_size))
    assert [sample for batch in batches for sample in batch.samples] == list(dataset.samples)
    assert all(len(batch.samples) == batch_size for batch in batches[:-1])


@given(st.integers(1, 10), st.integers(1, 20), st.integers(0, 2**32))
def test_a_draw_repeats_nothing_and_can_be_repeated(num_samples, wanted, seed):
    dataset = Dataset("texts", tuple(text([i + 1]) for i in range(num_samples)))
    drawn = dataset.take(wanted, seed)
    assert len(drawn) == min(wanted, num_samples)
    assert len({id(sample) for sample in drawn.samples}) == len(drawn)
    assert drawn.samples == dataset.take(wanted, seed).samples


def test_another_seed_is_another_draw():
    dataset = Dataset("texts", tuple(text([i + 1]) for i in range(30)))
    assert dataset.take(10, 0).digest != dataset.take(10, 1).digest


def test_a_draw_keeps_the_pad_token():
    assert Dataset("texts", (text([1]),), pad_token=7).take(1, 0).pad_token == 7


def test_the_digest_sees_every_field_and_the_order():
    variants = [
        (text([1, 2]), text([3])),
        (text([3]), text([1, 2])),
        (text([1, 2]), text([4])),
        (text([1, 2]), text([3], labelled=False)),
        (text([1, 2]), text([3], metric="bits_per_byte")),
        (text([1, 2]), text([3], group="other")),
        (text([1, 2]), text([3], num_bytes=5)),
        (text([1]), text([2, 3])),
        (text([1, 2]),),
    ]
    digests = {Dataset("texts", samples).digest for samples in variants}
    assert len(digests) == len(variants)
    assert Dataset("renamed", variants[0]).digest in digests


def test_one_group():
    dataset = Dataset("texts", (text([1], group="a"), text([2], group="b"), text([3], group="a")), pad_token=7)
    chosen = dataset.only("a")
    assert [sample.inputs["input_ids"].tolist() for sample in chosen.samples] == [[1], [3]]
    assert chosen.pad_token == 7
    with pytest.raises(DataError, match="no group 'c'; it has a, b"):
        dataset.only("c")


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="'nothing' is empty"):
        Dataset("nothing", ())

"""Reading data of every accepted shape."""

from itertools import count

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from blockexport.core.data import Dataset
from blockexport.errors import ConfigError, DataError
from blockexport.models.batches import ModelBatch, read_data
from blockexport.testing.tiny_data import tiny_dataset


def rows(first, size=4):
    return {"input_ids": torch.arange(first, first + size)[:, None], "labels": torch.arange(size)}


def test_a_dataset_keeps_its_order_and_its_digest():
    dataset = tiny_dataset("decoder", num_samples=5)
    read = read_data(dataset, batch_size=2)
    assert [batch.size for batch in read] == [2, 2, 1]
    assert (len(read), read.num_samples, read.digest) == (3, 5, dataset.digest)
    assert [sample for batch in read for sample in batch.rows.samples] == list(dataset.samples)


def test_samples_are_drawn_from_a_dataset_by_seed():
    dataset = tiny_dataset("decoder", num_samples=9)
    first, again, other = (read_data(dataset, num_samples=4, seed=seed) for seed in (1, 1, 2))
    assert first.num_samples == 4
    assert first.digest == again.digest != other.digest


def test_more_samples_than_there_are_means_all():
    assert read_data(tiny_dataset("decoder", num_samples=3), num_samples=50).num_samples == 3
    assert read_data([rows(0)], num_samples=50).num_samples == 4


def test_an_iterable_is_cut_to_the_sample_and_not_read_further():
    read = read_data((rows(i) for i in count()), num_samples=6)
    assert [batch.size for batch in read] == [4, 2]
    assert [len(batch.labels) for batch in read] == [4, 2]
    assert [len(batch.inputs["input_ids"]) for batch in read] == [4, 2]


def test_a_data_loader_is_read_alike_twice():
    samples = [{"pixel_values": torch.full((1, 2, 2), float(i)), "labels": i} for i in range(5)]
    read = read_data(DataLoader(samples, batch_size=2))
    assert [batch.labels.tolist() for batch in read] == [[0, 1], [2, 3], [4]]
    assert [batch.inputs["pixel_values"][0, 0, 0, 0].item() for batch in read] == [0.0, 2.0, 4.0]


def test_the_digest_sees_values_and_shapes():
    digests = [
        read_data([{"x": torch.zeros(2, 3)}]).digest,
        read_data([{"x": torch.zeros(3, 2)}]).digest,
        read_data([{"x": torch.zeros(2, 3, dtype=torch.int32)}]).digest,
        read_data([{"x": torch.tensor([[0.0, 0, 0], [0, 0, 1]])}]).digest,
        read_data([{"y": torch.zeros(2, 3)}]).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert read_data([{"x": np.zeros((2, 3), np.float32)}]).digest == digests[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batch"),
        ([{"x": torch.zeros(0, 3)}], "no batch"),
        ([(torch.zeros(2), torch.zeros(2))], "a batch is a tuple"),
        ([{}], "a batch is a dict"),
        ([{"x": torch.zeros(2), "labels": torch.zeros(3)}], "different lengths"),
        ([{"labels": torch.zeros(3)}], "labels only"),
        ([{"x": ["a", "b"]}], "entry 'x' of a batch is a list"),
        ({"x": torch.zeros(2)}, "data is a dict"),
        (7, "data is a int"),
    ],
)
def test_bad_data_is_told_apart(data, message):
    with pytest.raises(DataError, match=message):
        read_data(data)


@pytest.mark.parametrize("option", ["num_samples", "batch_size"])
def test_counts_below_one_are_refused(option):
    with pytest.raises(ConfigError, match=option):
        read_data([rows(0)], **{option: 0})


def test_a_dataset_without_samples_cannot_be():
    with pytest.raises(DataError, match="empty"):
        Dataset("none", ())


def test_token_weights_need_a_flag_for_each_token():
    hidden = torch.zeros(2, 3, 4)
    assert ModelBatch({"x": torch.zeros(2)}, None).token_weights(hidden).tolist() == [[1.0] * 3] * 2
    flags = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert ModelBatch({"attention_mask": flags}, None).token_weights(hidden).tolist() == flags.tolist()
    with pytest.raises(DataError, match="attention_mask"):
        ModelBatch({"attention_mask": torch.ones(2, 4)}, None).token_weights(hidden)

"""Scores of single tasks and of halves: what scoring those samples alone would have given."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from blockexport.core.data import Dataset
from blockexport.models.batches import read_data
from blockexport.scoring import SCORING_METHODS, score
from blockexport.scoring.parts import sample_parts
from blockexport.testing.tiny_data import tiny_dataset


@pytest.fixture
def tasks():
    """Texts, in bits per byte, and questions in turn."""
    return tiny_dataset("decoder", num_samples=10)


def part_of(data, *part):
    parts = sample_parts(read_data(data))
    return Dataset(data.name, tuple(s for s, own in zip(data.samples, parts, strict=True) if own == part))


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_each_part_scores_as_if_it_were_scored_alone(llama, tasks, method):
    options = {"method": method, "protected": [1], "batch_size": 3}
    found = score(llama, data=tasks, **options)
    assert [task.name for task in found.tasks] == ["answers", "texts"]
    assert sum(task.num_samples for task in found.tasks) == found.num_samples == 10

    def expect(samples, name):
        alone = score(llama, data=samples, **options)
        # Bits per byte are in units of the mean text of all that is scored together.
        unit = mean_bytes(samples) / mean_bytes(tasks) if (method, name) == ("accuracy_drop", "texts") else 1.0
        scaled = [[unit * value for value in row] for row in (alone.scores, alone.stderr)]
        return [pytest.approx(row, rel=1e-3, abs=1e-6) for row in scaled]

    for task in found.tasks:
        samples = tasks.only(task.name)
        assert [task.scores, task.stderr] == expect(samples, task.name)
        assert task.num_samples == len(samples)
        for half in (0, 1):
            assert task.halves[half] == expect(part_of(tasks, task.name, half), task.name)[0]


def mean_bytes(data):
    return np.mean([sample.num_bytes for sample in data.samples if sample.num_bytes])


def test_halves_together_are_the_whole(llama, tasks):
    found = score(llama, method="loss_drop", data=tasks)
    sizes = Counter(half for _task, half in sample_parts(read_data(tasks)))
    weighted = np.average(found.halves, axis=0, weights=[sizes[0], sizes[1]])
    assert found.scores == pytest.approx(weighted)


def test_samples_of_a_task_are_dealt_evenly_and_always_alike():
    data = read_data(tiny_dataset("decoder", num_samples=11))
    parts = sample_parts(data)
    assert sorted(Counter(parts).values()) == [2, 3, 3, 3]
    assert parts == sample_parts(data)
    assert [task for task, _half in parts] == [sample.group for sample in data.source.samples]


def test_plain_batches_are_of_one_task(llama):
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(1, 90, (5, 8)))
    batches = [{"input_ids": rows, "labels": rows} for rows in tokens.split(2)]
    found = score(llama, method="loss_drop", data=batches)
    assert (found.tasks, len(found.halves)) == ((), 2)
    assert found.agreement.halves is not None
    single = score(llama, method="loss_drop", data=batches[:1], num_samples=1)
    assert (single.halves, single.agreement.halves) == ((), None)


def test_a_killed_run_goes_on_with_its_parts(llama, tasks, tmp_path):
    path, whole = tmp_path / "run", score(llama, method="loss_drop", data=tasks, batch_size=4)

    def kill(done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(llama, method="loss_drop", data=tasks, batch_size=4, resume_path=path, on_progress=kill)
    assert len(json.loads(path.read_text())["parts"]) == 4
    assert score(llama, method="loss_drop", data=tasks, batch_size=4, resume_path=path) == whole


def test_a_task_that_is_measured_upside_down_ranks_the_blocks_upside_down(llama):
    texts = tiny_dataset("decoder", num_samples=4).samples
    data = Dataset("both", tuple(replace(text, group=group) for text in texts for group in ("up", "down")))

    def metric(outputs, batch):
        signs = torch.tensor([1.0, -1.0]).repeat(len(batch["input_ids"]) // 2)
        return signs * outputs.logits[:, 0].logsumexp(-1)

    found = score(llama, method="accuracy_drop", data=data, metric=metric, batch_size=4)
    assert found.agreement.tasks["up"].others == pytest.approx({"down": -1})
    assert len(set(found.of_task("up").scores)) == llama.num_blocks

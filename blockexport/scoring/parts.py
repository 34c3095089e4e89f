"""Which part of the data each sample is of: its task, and one of two halves, on which scores are compared."""

from collections import Counter

import numpy as np

from blockexport.core.data import Dataset
from blockexport.models.batches import ModelData

Part = tuple[str, int]
"""A task and 0 or 1 for a half; ready-made batches are of one task, ""."""


def sample_parts(data: ModelData) -> tuple[Part, ...]:
    """The part of each sample, in order: the samples of a task are dealt to the halves by turns, in random order.

    By turns, so that both halves hold as much of each task; in random order, because files often have an order.
    """
    source = data.source
    tasks = [sample.group for sample in source.samples] if isinstance(source, Dataset) else [""] * data.num_samples
    halves = [0] * len(tasks)
    dealt: Counter[str] = Counter()
    for i in np.random.default_rng(0).permutation(len(tasks)):
        halves[i] = dealt[tasks[i]] % 2
        dealt[tasks[i]] += 1
    return tuple(zip(tasks, halves, strict=True))

"""Labelled samples as arrays, so that eager models and engines are judged by the same code on the same data."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from blockexport.core.model import ModelSpec
from blockexport.errors import DataError

IGNORED_LABEL = -100

MetricName = Literal["bits_per_byte", "exact_match", "accuracy", "cosine"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sample, unbatched.

    Attributes:
        inputs: for text `input_ids` (tokens,) int64, for vision `pixel_values` (channels, height, width) float32.
        labels: for text (tokens,) int64, aligned with `input_ids` and IGNORED_LABEL where nothing is to be predicted
            (the model's output at position t-1 predicts label t); for vision a () int64; None when the metric
            needs no label.
        metric: how this sample is judged.
        group: the task the sample belongs to, reported on its own.
        num_bytes: UTF-8 bytes that the labelled tokens stand for; only for `bits_per_byte`.
    """

    inputs: dict[str, NDArray[np.generic]]
    labels: NDArray[np.int64] | None
    metric: MetricName
    group: str
    num_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples padded to one shape.

    Attributes:
        inputs: for text `input_ids` and `attention_mask` (batch, tokens) int64, padded on the right; for vision
            `pixel_values` (batch, channels, height, width).
        labels: (batch, tokens) or (batch,) int64; padding is IGNORED_LABEL.
        samples: what the rows came from.
    """

    inputs: dict[str, NDArray[np.generic]]
    labels: NDArray[np.int64] | None
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """An ordered, never empty collection of samples.

    Attributes:
        name: where it came from.
        samples: at least one.
        pad_token: id to pad `input_ids` with.
    """

    name: str
    samples: tuple[Sample, ...]
    pad_token: int = 0

    def __post_init__(self) -> None:
        if not self.samples:
            msg = f"dataset {self.name!r} is empty; give at least one sample"
            raise DataError(msg)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def digest(self) -> str:
        """SHA-256 over every array of every sample."""
        state = hashlib.sha256()
        for sample in self.samples:
            state.update(f"{sample.metric}:{sample.group}:{sample.num_bytes}".encode())
            for name in sorted(sample.inputs):
                state.update(name.encode() + np.ascontiguousarray(sample.inputs[name]).tobytes())
            if sample.labels is not None:
                state.update(np.ascontiguousarray(sample.labels).tobytes())
        return state.hexdigest()

    def take(self, num_samples: int, seed: int) -> "Dataset":
        """A random subset without replacement, in random order; all samples when there are not more."""
        order = np.random.default_rng(seed).permutation(len(self.samples))[:num_samples]
        return Dataset(self.name, tuple(self.samples[i] for i in order), self.pad_token)

    def only(self, group: str) -> "Dataset":
        """The samples of one group.

        Raises:
            DataError: there is no such group.
        """
        chosen = tuple(sample for sample in self.samples if sample.group == group)
        if not chosen:
            groups = sorted({sample.group for sample in self.samples})
            msg = f"dataset {self.name!r} has no group {group!r}; it has {', '.join(groups)}"
            raise DataError(msg)
        return Dataset(self.name, chosen, self.pad_token)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Padded batches in order; the last one may be smaller."""
        for start in range(0, len(self.samples), batch_size):
            yield collate(self.samples[start : start + batch_size], self.pad_token)


def check_tokens(tokens: NDArray[np.generic], spec: ModelSpec) -> None:
    """Refuse token ids (..., tokens) that a model has no place or no embedding for.

    Raises:
        DataError: there are more tokens than positions, or an id outside the vocabulary.
    """
    length = tokens.shape[-1]
    if 0 < spec.context_tokens < length:
        msg = f"a sample has {length} tokens, but {spec.name} places {spec.context_tokens}; shorten it"
        raise DataError(msg)
    lowest, highest = int(tokens.min(initial=0)), int(tokens.max(initial=0))
    num_tokens = spec.vocab_size + spec.num_extra_tokens
    if lowest < 0 or highest >= num_tokens:
        outside = lowest if lowest < 0 else highest
        msg = f"token id {outside} is outside the vocabulary of {spec.name}, 0 to {num_tokens - 1}; fix the data"
        raise DataError(msg)


def collate(samples: Sequence[Sample], pad_token: int) -> Batch:
    """Stack samples of one kind into a batch, text padded on the right."""
    rows = tuple(samples)
    if "input_ids" not in rows[0].inputs:
        inputs = {name: np.stack([row.inputs[name] for row in rows]) for name in rows[0].inputs}
        labelled = [row.labels for row in rows if row.labels is not None]
        return Batch(inputs, np.stack(labelled) if len(labelled) == len(rows) else None, rows)
    width = max(len(row.inputs["input_ids"]) for row in rows)
    tokens = np.full((len(rows), width), pad_token, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORED_LABEL, np.int64)
    for i, row in enumerate(rows):
        size = len(row.inputs["input_ids"])
        tokens[i, :size], mask[i, :size] = row.inputs["input_ids"], 1
        if row.labels is not None:
            labels[i, :size] = row.labels
    return Batch({"input_ids": tokens, "attention_mask": mask}, labels, rows)

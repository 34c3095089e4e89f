"""Labelled samples as arrays, so that eager models and engines are judged by the same code on the same data."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from blockexport.core.model import ModelSpec
from blockexport.errors import DataError

IGNORED_LABEL = -100

MetricName = Literal["bits_per_byte", "exact_match", "multiple_choice", "vqa_accuracy", "accuracy", "cosine"]

# What a picture in a prompt brings along; crops are padded with -1, which the models take as absent.
_PICTURE_INPUTS = ("images", "image_masks", "image_input_idx")
_NO_CROP = -1


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sample, unbatched.

    Attributes:
        inputs: for text `input_ids` (tokens,) int64, for vision `pixel_values` (channels, height, width) float32; for
            text about pictures also `images`, `image_masks` for models that take them, and `image_input_idx`, crops
            first, as `processing.MolmoProcessor` makes them.
        labels: for text (tokens,) int64, aligned with `input_ids` and IGNORED_LABEL where nothing is to be predicted
            (the model's output at position t-1 predicts label t); for vision a () int64; None when the metric
            needs no label.
        metric: how this sample is judged.
        group: the task the sample belongs to, reported on its own.
        num_bytes: UTF-8 bytes that the labelled tokens stand for; only for `bits_per_byte`.
        choices: first tokens of the answers to choose from, all different; only for `multiple_choice`.
        replies: the tokens of each answer that somebody gave, and what it is worth, from 0 to 1; the labelled one is
            among them. Only for `vqa_accuracy`.
    """

    inputs: dict[str, NDArray[np.generic]]
    labels: NDArray[np.int64] | None
    metric: MetricName
    group: str
    num_bytes: int = 0
    choices: tuple[int, ...] = ()
    replies: tuple[tuple[tuple[int, ...], float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples padded to one shape.

    Attributes:
        inputs: for text `input_ids` and `attention_mask` (batch, tokens) int64, padded on the right; for vision
            `pixel_values` (batch, channels, height, width); for pictures in prompts `images` and its like, padded
            with -1 to the most crops of a row, and left out when no row has any.
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
            state.update(f":{sample.choices}".encode() if sample.choices else b"")
            state.update(f":{sample.replies}".encode() if sample.replies else b"")
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
    tokens = pad_stack([row.inputs["input_ids"] for row in rows], pad_token)
    mask = pad_stack([np.ones(len(row.inputs["input_ids"]), np.int64) for row in rows], 0)
    labels = np.full(tokens.shape, IGNORED_LABEL, np.int64)
    for i, row in enumerate(rows):
        if row.labels is not None:
            labels[i, : len(row.labels)] = row.labels
    pictures = stack_pictures([row.inputs for row in rows])
    return Batch({"input_ids": tokens, "attention_mask": mask, **pictures}, labels, rows)


def pad_stack(arrays: Sequence[NDArray[np.generic]], fill: int) -> NDArray[np.generic]:
    """Stack arrays that differ in length only, the shorter ones filled up behind."""
    longest = max(map(len, arrays))
    stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


def stack_pictures(rows: Sequence[Mapping[str, NDArray[np.generic]]]) -> dict[str, NDArray[np.generic]]:
    """Stack what belongs to pictures, rows without a picture having no crop; empty when no row has one."""
    seen = next((row for row in rows if "images" in row), None)
    if seen is None:
        return {}
    names = [name for name in _PICTURE_INPUTS if name in seen]
    return {name: pad_stack([row.get(name, seen[name][:0]) for row in rows], _NO_CROP) for name in names}

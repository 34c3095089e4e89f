"""Whatever the caller has as data, as tensor batches: a `Dataset`, a torch DataLoader, or any iterable of dicts."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from blockexport.core.data import Batch, Dataset
from blockexport.errors import ConfigError, DataError

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, eq=False)
class ModelBatch:
    """Some samples, ready for a model.

    Attributes:
        inputs: by name, each (batch, ...).
        labels: (batch,) classes or (batch, tokens) with -100 where nothing is to be predicted; None without labels.
        rows: the samples behind the tensors, when they came from a `Dataset`.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    rows: Batch | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))

    def to_dict(self) -> dict[str, torch.Tensor]:
        """Inputs and labels in one dict, as a DataLoader for a Hugging Face model yields them."""
        return self.inputs if self.labels is None else self.inputs | {"labels": self.labels}

    def row(self, index: int) -> "ModelBatch":
        """One sample as a batch of its own, padding included."""
        only = slice(index, index + 1)
        inputs = {name: tensor[only] for name, tensor in self.inputs.items()}
        labels = None if self.labels is None else self.labels[only]
        if self.rows is None:
            return ModelBatch(inputs, labels)
        arrays = {name: array[only] for name, array in self.rows.inputs.items()}
        array_labels = None if self.rows.labels is None else self.rows.labels[only]
        return ModelBatch(inputs, labels, Batch(arrays, array_labels, self.rows.samples[only]))

    def token_weights(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """1 for a real token and 0 for padding, (batch, seq), for hidden states (batch, seq, hidden).

        Raises:
            DataError: the attention mask does not have one flag for each token.
        """
        mask = self.inputs.get("attention_mask")
        if mask is None and "image_input_idx" in self.inputs:
            # Batches with pictures say with -1 what is padding.
            mask = self.inputs["input_ids"] != -1
        if mask is None:
            return hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.float32)
        if mask.shape != hidden_states.shape[:2]:
            wanted = tuple(hidden_states.shape[:2])
            msg = f"attention_mask is {tuple(mask.shape)}, but the blocks see {wanted}; give one 0 or 1 for each token"
            raise DataError(msg)
        return mask.to(hidden_states.device, torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ModelData:
    """All batches of one run; iterating twice gives the same batches.

    Attributes:
        source: what to batch: a dataset, or the batches themselves.
        batch_size: rows at a time; without effect on batches that came ready-made.
        num_samples: samples in all batches together.
        digest: SHA-256 of the samples.
    """

    source: Dataset | tuple[ModelBatch, ...]
    batch_size: int
    num_samples: int
    digest: str

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size) if isinstance(self.source, Dataset) else len(self.source)

    def __iter__(self) -> Iterator[ModelBatch]:
        if isinstance(self.source, Dataset):
            return (_from_rows(batch) for batch in self.source.batches(self.batch_size))
        return iter(self.source)


def read_data(
    data: Dataset | Iterable[Mapping[str, Any]],
    *,
    num_samples: int | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> ModelData:
    """Make batches of what the caller gave.

    Args:
        data: a dataset, or an iterable of dict batches such as a torch DataLoader, whose entry `labels` is optional.
            An iterable is read once, up to `num_samples`, and held in memory.
        num_samples: samples to use, drawn with `seed` from a dataset, the first ones of an iterable; all when None
            or when there are not as many.
        seed: seed of the draw.
        batch_size: rows at a time for a dataset; an iterable brings its own batches.

    Raises:
        ConfigError: `num_samples` or `batch_size` is below 1.
        DataError: there is no sample, or a batch is no dict of arrays of one length.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value is not None and value < 1:
            msg = f"{name} is {value}; give at least 1"
            raise ConfigError(msg)
    if isinstance(data, Dataset):
        chosen = data if num_samples is None else data.take(num_samples, seed)
        return ModelData(chosen, batch_size, len(chosen), chosen.digest)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        msg = f"data is a {type(data).__name__}; give a Dataset, a DataLoader or a list of dict batches"
        raise DataError(msg)
    batches = _read_batches(data, num_samples)
    if not batches:
        msg = "the data holds no batch; give at least one sample"
        raise DataError(msg)
    return ModelData(batches, batch_size, sum(batch.size for batch in batches), _digest(batches))


def _read_batches(data: Iterable[Mapping[str, Any]], num_samples: int | None) -> tuple[ModelBatch, ...]:
    batches: list[ModelBatch] = []
    missing = num_samples
    for entry in data:
        batch = _from_mapping(entry, missing)
        if batch.size:
            batches.append(batch)
        if missing is not None:
            missing -= batch.size
            # Asking the iterable for one batch more could be slow, or never end.
            if not missing:
                break
    return tuple(batches)


def _from_mapping(entry: Any, limit: int | None) -> ModelBatch:
    if not isinstance(entry, Mapping) or not entry:
        msg = f"a batch is a {type(entry).__name__}; give dicts from input name to array, with `labels` if any"
        raise DataError(msg)
    tensors = {name: _as_tensor(name, value)[:limit] for name, value in entry.items()}
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(sizes.values())) != 1:
        msg = f"the entries of a batch have different lengths {sizes}; give one row for each sample"
        raise DataError(msg)
    labels = tensors.pop("labels", None)
    if not tensors:
        msg = "a batch holds labels only; give the model's inputs too"
        raise DataError(msg)
    return ModelBatch(tensors, labels)


def _as_tensor(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or not value.ndim:
        msg = f"entry {name!r} of a batch is a {type(value).__name__}; give tensors or arrays, one row for each sample"
        raise DataError(msg)
    return value


def _from_rows(batch: Batch) -> ModelBatch:
    inputs = {name: torch.from_numpy(np.asarray(array)) for name, array in batch.inputs.items()}
    labels = None if batch.labels is None else torch.from_numpy(batch.labels)
    return ModelBatch(inputs, labels, batch)


def _digest(batches: Iterable[ModelBatch]) -> str:
    state = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.to_dict().items()):
            state.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()

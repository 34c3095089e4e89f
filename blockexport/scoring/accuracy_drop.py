"""Accuracy drop: how much worse the model does its task without a block. The recommended method.

Nothing is forced on while a block is scored. Forcing the first and the last block on, as the project this one grew
from did, measures the full model for them, scores them 0 and has them pruned first; protected blocks score +inf.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from blockexport.core.data import IGNORED_LABEL, Dataset
from blockexport.core.masks import DepthMask
from blockexport.core.quality import sample_scores
from blockexport.errors import DataError
from blockexport.models.batches import ModelBatch, ModelData
from blockexport.models.forward import is_per_token, main_output
from blockexport.models.loaded import LoadedModel
from blockexport.models.partial import skipping
from blockexport.scoring.job import ScoringJob, score_by_dropping
from blockexport.scoring.losses import fitting_targets
from blockexport.scoring.progress import Progress

BatchMetric = Callable[[Any, dict[str, torch.Tensor]], Any]
"""The model's outputs and the batch (with `labels`) to one number for each sample, (batch,); higher is better."""

ModelMetric = Callable[[Any], float]
"""The model, with a block skipped, to one number; higher is better."""


def score_accuracy_drop(job: ScoringJob, metric: BatchMetric | None) -> None:
    """Mean over samples of the drop in quality.

    Quality is what `metric` says; else what each sample of a `Dataset` asks for (bits per byte count as a drop when
    they rise; a dataset of several metrics averages over its samples, each in its own unit); else, for plain batches,
    the share of labels that are predicted right.

    Raises:
        DataError: there is no metric and there are no labels, or the metric's result is unusable.
    """
    bytes_per_sample = _mean_bytes(job.data)

    def judge(batch: ModelBatch, outputs: Any, full_outputs: Any) -> NDArray[np.float64]:
        if metric is not None:
            return _checked(metric(outputs, batch.to_dict()), batch)
        output = main_output(job.model, outputs)
        if batch.rows is None:
            return label_accuracy(job.model, batch, output)
        reference = main_output(job.model, full_outputs)
        scores = sample_scores(output.cpu().numpy(), batch.rows, reference.cpu().numpy())
        nats = np.array([sample.metric == "bits_per_byte" for sample in batch.rows.samples])
        # Dividing by the mean size makes the mean over samples the difference in bits per byte, to the digit.
        return np.where(nats, -scores / math.log(2) / bytes_per_sample, scores)

    score_by_dropping(job, judge)


def score_model_metric(
    model: LoadedModel, given: Any, metric: ModelMetric, blocks: tuple[int, ...], progress: Progress
) -> None:
    """The drop of a metric that runs the model itself; a step is a block, and nothing is known of the noise.

    Args:
        model: the model.
        given: what the caller passed as the model, and what `metric` is called with.
        metric: see `ModelMetric`.
        blocks: the blocks to measure.
        progress: results so far.
    """
    full = DepthMask.full(model.num_blocks)
    baseline = _checked_number(metric(given))
    for block in blocks[progress.done :]:
        with skipping(model, full.without(block)):
            without = _checked_number(metric(given))
        progress.add(block, np.array([baseline - without]))
        progress.advance()


def label_accuracy(model: LoadedModel, batch: ModelBatch, output: torch.Tensor) -> NDArray[np.float64]:
    """Share of each sample's labels that the largest logit hits, (batch,)."""
    if model.spec.output != "logits":
        msg = f"{model.spec.name} gives hidden states, which no label fits; pass a metric or use method 'loss_drop'"
        raise DataError(msg)
    targets = fitting_targets(model, batch, output).to(output.device)
    predicted = output.argmax(-1)
    if is_per_token(output):
        predicted = predicted[:, : targets.shape[1]]
    counted = (targets != IGNORED_LABEL).reshape(batch.size, -1)
    if not bool(counted.any(1).all()):
        msg = f"a sample has no label other than {IGNORED_LABEL}; leave it out or label it"
        raise DataError(msg)
    right = (predicted == targets).reshape(batch.size, -1) & counted
    return np.asarray((right.sum(1).double() / counted.sum(1)).cpu().numpy())


def _mean_bytes(data: ModelData) -> float:
    if not isinstance(data.source, Dataset):
        return 1.0
    sizes = [sample.num_bytes for sample in data.source.samples if sample.metric == "bits_per_byte"]
    if sizes and not sum(sizes):
        msg = f"dataset {data.source.name!r} asks for bits per byte, but no sample counts its bytes; set num_bytes"
        raise DataError(msg)
    return float(np.mean(sizes)) if sizes else 1.0


def _checked(result: Any, batch: ModelBatch) -> NDArray[np.float64]:
    values = np.asarray(result.detach().cpu() if isinstance(result, torch.Tensor) else result, dtype=np.float64)
    if values.shape != (batch.size,):
        msg = f"the metric gave shape {values.shape} for {batch.size} samples; give one number for each sample"
        raise DataError(msg)
    if not np.isfinite(values).all():
        msg = "the metric gave NaN or infinity; every sample needs a finite number"
        raise DataError(msg)
    return values


def _checked_number(result: Any) -> float:
    value = float(result)
    if not math.isfinite(value):
        msg = f"the metric gave {value}; it must give a finite number, higher is better"
        raise DataError(msg)
    return value

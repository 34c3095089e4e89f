"""One scoring run, and the two loops that all methods share."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from blockexport.core.masks import DepthMask
from blockexport.errors import DataError
from blockexport.models.batches import ModelBatch, ModelData
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel
from blockexport.models.partial import record, rerun, skipping
from blockexport.scoring.parts import Part, sample_parts
from blockexport.scoring.progress import Progress

Measure = Callable[[LoadedModel, ModelBatch], torch.Tensor]
"""One batch to one number for each sample and block, (batch, num_blocks)."""

Judge = Callable[[ModelBatch, Any, Any], NDArray[np.float64]]
"""Batch, the model's outputs and the full model's outputs to one number for each sample, (batch,); higher is better."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoringJob:
    """What to score and where the results gather.

    Attributes:
        model: the model.
        data: its batches.
        blocks: the blocks to measure, ascending; the protected ones are left out.
        progress: results so far.
        side: what has these blocks: the model, or its vision side.
    """

    model: LoadedModel
    data: ModelData
    blocks: tuple[int, ...]
    progress: Progress
    side: LoadedModel

    def batches(self) -> Iterator[tuple[ModelBatch, tuple[Part, ...]]]:
        """Each batch with the parts of its samples."""
        parts = iter(sample_parts(self.data))
        for batch in self.data:
            yield batch, tuple(itertools.islice(parts, batch.size))


def score_in_one_pass(job: ScoringJob, measure: Measure) -> None:
    """Measure all blocks at once; a step is a batch."""
    for step, (batch, parts) in enumerate(job.batches()):
        if step < job.progress.done:
            continue
        values = measure(job.model, batch).double().cpu().numpy()
        if not np.isfinite(values).all():
            msg = "the model's activations hold NaN or infinity on this data; check the weights and the inputs"
            raise DataError(msg)
        for block in job.blocks:
            job.progress.add(block, values[:, block], parts)
        job.progress.advance()


def score_by_dropping(job: ScoringJob, judge: Judge) -> None:
    """Measure how much worse the model does without each block; a step is one block on one batch.

    A sample is judged with and without the block, so the standard error is that of paired differences. Only the
    blocks behind the dropped one run again (`models.partial`); without a block of the vision side the whole model does.
    """
    for index, (batch, parts) in enumerate(job.batches()):
        first = index * len(job.blocks)
        missing = job.blocks[max(0, job.progress.done - first) :]
        if not missing:
            continue
        full, without = _whole_and_without(job, batch)
        baseline = judge(batch, full, full)
        for block in missing:
            job.progress.add(block, baseline - judge(batch, without(block), full), parts)
            job.progress.advance()


def _whole_and_without(job: ScoringJob, batch: ModelBatch) -> tuple[Any, Callable[[int], Any]]:
    """Outputs of the full model, and how to get those without one block."""
    model, full_mask = job.model, DepthMask.full(job.side.num_blocks)
    if job.side is model:
        run = record(model, batch.inputs)
        return run.outputs, lambda block: rerun(model, run, full_mask.without(block)).outputs

    def without(block: int) -> Any:
        with torch.no_grad(), skipping(job.side, full_mask.without(block)):
            return run_model(model, batch.inputs)

    with torch.no_grad():
        return run_model(model, batch.inputs), without

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
from blockexport.models.loaded import LoadedModel
from blockexport.models.partial import record, rerun
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
    """

    model: LoadedModel
    data: ModelData
    blocks: tuple[int, ...]
    progress: Progress

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
    blocks behind the dropped one run again (`models.partial`).
    """
    full_mask = DepthMask.full(job.model.num_blocks)
    for index, (batch, parts) in enumerate(job.batches()):
        first = index * len(job.blocks)
        missing = job.blocks[max(0, job.progress.done - first) :]
        if not missing:
            continue
        full = record(job.model, batch.inputs)
        baseline = judge(batch, full.outputs, full.outputs)
        for block in missing:
            run = rerun(job.model, full, full_mask.without(block))
            job.progress.add(block, baseline - judge(batch, run.outputs, full.outputs), parts)
            job.progress.advance()

"""Loss drop: how much the loss rises when a block is skipped."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from blockexport.models.batches import ModelBatch
from blockexport.models.forward import cosine_to, main_output
from blockexport.models.loaded import LoadedModel
from blockexport.scoring.job import ScoringJob, score_by_dropping
from blockexport.scoring.losses import labelled_rows, sample_losses


def score_loss_drop(job: ScoringJob) -> None:
    """Mean over samples of the rise in loss: cross entropy in nats, or 1 - cosine to the full output without labels."""

    def judge(batch: ModelBatch, outputs: Any, full_outputs: Any) -> NDArray[np.float64]:
        return -measure_loss(job.model, batch, outputs, full_outputs).double().cpu().numpy()

    score_by_dropping(job, judge)


def measure_loss(model: LoadedModel, batch: ModelBatch, outputs: Any, full_outputs: Any) -> torch.Tensor:
    """Loss of each sample, (batch,)."""
    labelled = labelled_rows(model, batch)
    losses = 1 - cosine_to(batch, main_output(model, outputs), main_output(model, full_outputs))
    if not bool(labelled.any()):
        return losses
    return torch.where(labelled.to(losses.device), sample_losses(model, batch, outputs), losses)

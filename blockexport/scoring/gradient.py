"""Gradient magnitude: how strongly the loss depends on a block's parameters."""

import torch
from torch import nn

from blockexport.errors import DataError
from blockexport.models.batches import ModelBatch
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel
from blockexport.scoring.job import ScoringJob, score_in_one_pass
from blockexport.scoring.losses import labelled_rows, sample_losses


def score_gradient(job: ScoringJob) -> None:
    """Mean over samples of the sum of |d loss / d parameter| over a block's parameters.

    The model stays in evaluation mode: dropout would blur the gradient. Samples go through one by one, since the
    magnitude of a batch's mean gradient depends on how samples happen to be batched.

    Raises:
        DataError: a sample has no labels.
    """
    score_in_one_pass(job, measure_gradient)


def measure_gradient(model: LoadedModel, batch: ModelBatch) -> torch.Tensor:
    """Gradient magnitude of each sample and block, (batch, num_blocks); no parameter's `grad` is touched."""
    if not bool(labelled_rows(model, batch).all()):
        msg = "method 'gradient' needs a loss, but a sample has no labels; give labels or use 'block_influence'"
        raise DataError(msg)
    of_blocks = [list(block.parameters()) for block in model.blocks]
    frozen = [parameter for of_block in of_blocks for parameter in of_block if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad = True
        rows = [_gradient_sums(model, batch.row(i), of_blocks) for i in range(batch.size)]
    finally:
        for parameter in frozen:
            parameter.requires_grad = False
    return torch.tensor(rows)


def _gradient_sums(model: LoadedModel, sample: ModelBatch, of_blocks: list[list[nn.Parameter]]) -> list[float]:
    with torch.enable_grad():
        loss = sample_losses(model, sample, run_model(model, sample.inputs)).sum()
        flat = [parameter for of_block in of_blocks for parameter in of_block]
        gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    return [sum(_magnitude(next(gradients)) for _ in of_block) for of_block in of_blocks]


def _magnitude(gradient: torch.Tensor | None) -> float:
    # Experts that no token was sent to have no gradient.
    return 0.0 if gradient is None else float(gradient.abs().sum())

"""Activation norm, as the project this one grew from had it, so that results can be compared.

The norm grows along the residual stream of a pre-norm model whether or not a block matters, so ranking by it mostly
keeps the last blocks. Use it as a baseline, not to choose.
"""

import torch

from blockexport.models.batches import ModelBatch
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel
from blockexport.models.observe import observed
from blockexport.scoring.job import ScoringJob, score_in_one_pass


def score_activation(job: ScoringJob) -> None:
    """Mean over samples of the L2 norm of a block's whole output (seq, hidden), padding left out."""
    score_in_one_pass(job, measure_activation)


def measure_activation(model: LoadedModel, batch: ModelBatch) -> torch.Tensor:
    """Output norm of each sample and block, (batch, num_blocks)."""
    norms = torch.zeros(batch.size, model.num_blocks)

    def watch(block: int, _entered: torch.Tensor, left: torch.Tensor) -> None:
        weights = batch.token_weights(left)[..., None]
        norms[:, block] = (left.float() * weights).flatten(1).norm(dim=1).cpu()

    with torch.no_grad(), observed(model, watch):
        run_model(model, batch.inputs)
    return norms

"""Block influence: how much a block turns the hidden states (ShortGPT, https://arxiv.org/abs/2403.03853)."""

import torch
from torch import nn

from blockexport.models.batches import ModelBatch
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel
from blockexport.models.observe import observed
from blockexport.scoring.job import ScoringJob, score_in_one_pass


def score_block_influence(job: ScoringJob) -> None:
    """Mean over samples of 1 - cosine(block input, block output), itself a mean over tokens that are no padding."""
    score_in_one_pass(job, measure_block_influence)


def measure_block_influence(model: LoadedModel, batch: ModelBatch) -> torch.Tensor:
    """Influence of each block on each sample, (batch, num_blocks), between 0 and 2."""
    influence = torch.zeros(batch.size, model.num_blocks)

    def watch(block: int, entered: torch.Tensor, left: torch.Tensor) -> None:
        turned = 1 - nn.functional.cosine_similarity(entered.float(), left.float(), dim=-1)
        weights = batch.token_weights(left)
        influence[:, block] = ((turned * weights).sum(1) / weights.sum(1).clamp(min=1)).cpu()

    with torch.no_grad(), observed(model, watch):
        run_model(model, batch.inputs)
    return influence

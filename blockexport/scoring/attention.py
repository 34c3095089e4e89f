"""Attention entropy: how widely a block's attention is spread. High entropy scores high."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from blockexport.errors import ModelSupportError
from blockexport.models.batches import ModelBatch
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel
from blockexport.scoring.job import ScoringJob, score_in_one_pass

_EAGER = "eager"
_TINY = 1e-9


def score_attention(job: ScoringJob) -> None:
    """Mean over samples of the entropy in nats of the attention weights, averaged over heads and unpadded queries.

    Only eager attention hands out its weights, so the model runs with it while being scored, whatever it runs with
    otherwise.

    Raises:
        ModelSupportError: the model cannot switch to eager attention or does not hand out one weight tensor a block.
    """
    with eager_attention(job.model):
        score_in_one_pass(job, measure_attention)


def measure_attention(model: LoadedModel, batch: ModelBatch) -> torch.Tensor:
    """Entropy of each sample and block, (batch, num_blocks), for a model with eager attention."""
    with torch.no_grad():
        attentions = run_model(model, batch.inputs, output_attentions=True).attentions
    if attentions is None or len(attentions) != model.num_blocks:
        got = "none" if attentions is None else len(attentions)
        msg = f"{model.spec.architecture} gave {got} attention tensors, not {model.num_blocks}; use another method"
        raise ModelSupportError(msg)
    entropies = torch.zeros(batch.size, model.num_blocks)
    for block, weights in enumerate(attentions):
        probabilities = weights.float()
        of_query = -(probabilities * (probabilities + _TINY).log()).sum(-1).mean(1)
        counted = batch.token_weights(of_query[..., None])
        entropies[:, block] = ((of_query * counted).sum(1) / counted.sum(1).clamp(min=1)).cpu()
    return entropies


@contextmanager
def eager_attention(model: LoadedModel) -> Iterator[None]:
    """Run `model` with eager attention, and with its own again afterwards, also after an error."""
    module: Any = model.module
    before = getattr(module.config, "_attn_implementation", None)
    if before == _EAGER:
        yield
        return
    if not hasattr(module, "set_attn_implementation"):
        msg = f"{model.spec.architecture} cannot switch to eager attention; use a method other than 'attention'"
        raise ModelSupportError(msg)
    module.set_attn_implementation(_EAGER)
    try:
        yield
    finally:
        module.set_attn_implementation(before)

"""The loss that `gradient` and `loss_drop` look at."""

from typing import Any

import torch
from torch import nn

from blockexport.core.data import IGNORED_LABEL
from blockexport.errors import DataError
from blockexport.models.batches import ModelBatch
from blockexport.models.forward import is_per_token, main_output
from blockexport.models.loaded import LoadedModel


def labelled_rows(model: LoadedModel, batch: ModelBatch) -> torch.Tensor:
    """Which samples have something to predict, as flags (batch,)."""
    if batch.labels is None or model.spec.output != "logits":
        return torch.zeros(batch.size, dtype=torch.bool)
    labels = _targets(model, batch) if batch.labels.ndim > 1 else batch.labels
    return (labels != IGNORED_LABEL).reshape(batch.size, -1).any(1)


def sample_losses(model: LoadedModel, batch: ModelBatch, outputs: Any) -> torch.Tensor:
    """Cross entropy in nats for each sample, (batch,): a mean over its labelled tokens; NaN where it has none.

    Raises:
        DataError: the labels do not fit the output, or the output is not finite.
    """
    logits = main_output(model, outputs)
    targets = fitting_targets(model, batch, logits).to(logits.device)
    if is_per_token(logits):
        logits = logits[:, : targets.shape[1]].transpose(1, 2)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED_LABEL)
    counted = (targets != IGNORED_LABEL).reshape(batch.size, -1).sum(1)
    return losses.reshape(batch.size, -1).sum(1) / counted


def fitting_targets(model: LoadedModel, batch: ModelBatch, logits: torch.Tensor) -> torch.Tensor:
    """What each position of the logits should predict: (batch,) or (batch, positions).

    Position t predicts token t + 1 in decoders and in every `Dataset`; a masked or token-labelling encoder given as
    plain batches predicts label t at position t.

    Raises:
        DataError: there are no labels, they do not have one entry for each sample (and token), or one is no class.
    """
    wanted = tuple(logits.shape[:-1])
    if batch.labels is None or tuple(batch.labels.shape) != wanted:
        got = "none" if batch.labels is None else tuple(batch.labels.shape)
        msg = f"the logits need labels of shape {wanted}, got {got}; give `labels` with {IGNORED_LABEL} where to ignore"
        raise DataError(msg)
    targets = _targets(model, batch) if is_per_token(logits) else batch.labels
    outside = targets[(targets != IGNORED_LABEL) & ((targets < 0) | (targets >= logits.shape[-1]))]
    if outside.numel():
        msg = f"label {int(outside[0])} is outside 0..{logits.shape[-1] - 1}, what the model tells apart; fix the data"
        raise DataError(msg)
    return targets


def _targets(model: LoadedModel, batch: ModelBatch) -> torch.Tensor:
    assert batch.labels is not None
    is_shifted = model.spec.kind == "decoder" or batch.rows is not None
    return batch.labels[:, 1:] if is_shifted else batch.labels

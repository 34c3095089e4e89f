"""Calling a model of any kind the one way in which scoring and selection do."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from blockexport.core.data import check_tokens
from blockexport.errors import DataError
from blockexport.models.batches import ModelBatch
from blockexport.models.loaded import LoadedModel


def run_model(model: LoadedModel, inputs: Mapping[str, torch.Tensor], **options: Any) -> Any:
    """Call the module once on a whole batch, without building a cache.

    Args:
        model: a loaded model.
        inputs: by name, on any device.
        options: further arguments of the module, such as `output_attentions`.

    Returns:
        The module's own output object.

    Raises:
        DataError: token ids that the model has no place or no embedding for.
    """
    if "input_ids" in inputs:
        tokens = inputs["input_ids"].cpu()
        # Batches with pictures are padded with -1 throughout.
        check_tokens((tokens.where(tokens != -1, 0) if model.spec.vision else tokens).numpy(), model.spec)
    device = next(model.module.parameters()).device
    if model.spec.kind == "decoder":
        options = {"use_cache": False} | options
    return model.module(**{name: tensor.to(device) for name, tensor in inputs.items()}, **options)


def main_output(model: LoadedModel, outputs: Any) -> torch.Tensor:
    """Logits or hidden states in float32: (batch, tokens, vocab), (batch, classes) or (batch, tokens, hidden).

    Raises:
        DataError: the output holds NaN or infinity.
    """
    output: torch.Tensor = getattr(outputs, model.spec.output).float()
    if not bool(torch.isfinite(output).all()):
        msg = "the model's output holds NaN or infinity on this data; check the weights and the inputs"
        raise DataError(msg)
    return output


def is_per_token(output: torch.Tensor) -> bool:
    """Whether an output is (batch, tokens, ...), not (batch, classes)."""
    _, *axes = output.shape
    return len(axes) > 1


def pool_tokens(batch: ModelBatch, output: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that are no padding, (batch, width); an output without tokens stays as it is."""
    if not is_per_token(output):
        return output
    weights = batch.token_weights(output)[..., None]
    return (output * weights).sum(1) / weights.sum(1).clamp(min=1)


def cosine_to(batch: ModelBatch, output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Cosine of mean-pooled outputs with those of the full model, (batch,)."""
    return nn.functional.cosine_similarity(pool_tokens(batch, output), pool_tokens(batch, reference), dim=-1)

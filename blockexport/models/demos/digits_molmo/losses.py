"""The two things that are learned: to answer, and before that to see digits in image tokens."""

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from blockexport.core.data import IGNORED_LABEL
from blockexport.models.molmo.model import MolmoForCausalLM
from blockexport.processing.processor import PADDING


def attend_in_float32(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, Any]:
    """Attention for autocast: in bfloat16 its backward takes several times as long on a CPU."""
    with torch.autocast("cpu", enabled=False):
        attended: tuple[torch.Tensor, Any] = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **options
        )
    return attended


def encode_pictures(model: MolmoForCausalLM, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Image tokens (batch, crops, tokens, hidden), without computing crops that are padding."""
    real = (images != PADDING).flatten(2).any(2)
    encoded = model.encode_images(images[real][None], masks[real][None])[0]
    return encoded.new_zeros(*real.shape, *encoded.shape[1:]).index_put((real,), encoded)


def answer_loss(
    model: MolmoForCausalLM,
    inputs: dict[str, torch.Tensor],
    features: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted mean of the cross entropies of the answers' tokens; labels and weights are (batch, seq)."""
    text = {name: tensor for name, tensor in inputs.items() if name not in {"images", "image_masks"}}
    logits = model(**text, image_features=features, use_cache=False).logits
    said = labels != IGNORED_LABEL
    losses = nn.functional.cross_entropy(logits[said].float(), labels[said], reduction="none")
    return (losses * weights[said]).sum() / weights[said].sum()


def sight_loss(
    digit_head: nn.Module, features: torch.Tensor, image_input_idx: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """How well the digits can be told from the image tokens, each of which may show one.

    Args:
        digit_head: image token to ten scores.
        features: image tokens (batch, crops, tokens, hidden).
        image_input_idx: (batch, crops, tokens), negative for tokens that are dropped.
        shares: of each digit among those in the picture, (batch, 10).

    Returns:
        Cross entropy, to which the tokens with the highest scores count most.
    """
    scores = digit_head(features).float().masked_fill((image_input_idx < 0)[..., None], -torch.inf)
    return nn.functional.cross_entropy(scores.flatten(1, 2).logsumexp(1), shares)

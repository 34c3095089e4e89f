"""What a forward is given, made explicit and checked: padding, positions, pictures."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from blockexport.errors import RequestError
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.encoder import PADDING


def past_length(past_key_values: Any) -> int:
    """Tokens that the cache holds.

    Raises:
        RequestError: it is no cache of transformers.
    """
    if past_key_values is None:
        return 0
    if not isinstance(past_key_values, Cache):
        msg = (
            f"past_key_values is a {type(past_key_values).__name__}; give a transformers Cache, such as DynamicCache()"
        )
        raise RequestError(msg)
    return int(past_key_values.get_seq_length())


def real_tokens(
    given: torch.Tensor, attention_mask: torch.Tensor | None, num_past: int, *, has_ids: bool
) -> torch.Tensor:
    """Which tokens of past and present are no padding.

    Args:
        given: `input_ids` (batch, seq), or embeddings (batch, seq, hidden).
        attention_mask: (batch, num_past + seq or more); what lies beyond is for tokens to come. None when only -1 is
            padding, and nothing in the past.
        num_past: tokens in the cache.
        has_ids: `given` holds ids.

    Returns:
        Flags (batch, num_past + seq).

    Raises:
        RequestError: the mask is of another batch or too short.
    """
    batch, num_new = given.shape[:2]
    if attention_mask is None:
        new = given != PADDING if has_ids else given.new_ones(batch, num_new, dtype=torch.bool)
        return torch.cat([new.new_ones(batch, num_past), new], dim=1) if num_past else new
    if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < num_past + num_new:
        msg = (
            f"attention_mask is {tuple(attention_mask.shape)} for {batch} rows of {num_past} cached and {num_new} new "
            "tokens; give one flag for each of them"
        )
        raise RequestError(msg)
    return attention_mask[:, : num_past + num_new] != 0


def positions_of(real: torch.Tensor) -> torch.Tensor:
    """Position of each token among the tokens that are no padding, (batch, tokens)."""
    return (real.long().cumsum(-1) - 1).clamp(min=0)


def last_real(real: torch.Tensor) -> torch.Tensor:
    """Index of each row's last token that is no padding, (batch,); the last column where all is padding."""
    return real.shape[1] - 1 - real.long().flip(1).argmax(1)


def additive_mask(attention_bias: torch.Tensor, real: torch.Tensor, num_new: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask (batch, 1, num_new, tokens) that a bias given in place of causal attention makes.

    Args:
        attention_bias: (1 or batch, 1, length, length) with at least as many rows and columns as there are tokens;
            numbers to add to the scores, or flags of what is seen.
        real: which tokens are no padding, (batch, tokens).
        num_new: tokens that are not in the cache.
        dtype: of the scores.

    Raises:
        RequestError: the bias is too small.
    """
    total, lowest = real.shape[1], torch.finfo(dtype).min
    if attention_bias.ndim != 4 or min(attention_bias.shape[2:]) < total:
        msg = f"attention_bias is {tuple(attention_bias.shape)}; give (batch, 1, length, length) of {total} or more"
        raise RequestError(msg)
    bias = attention_bias[:, :, total - num_new : total, :total]
    if bias.dtype in {torch.bool, torch.int8}:
        bias = torch.zeros_like(bias, dtype=dtype).masked_fill(bias == 0, lowest)
    return bias.to(dtype).clamp(min=lowest).masked_fill(~real[:, None, None], lowest)


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Everything a call says about pictures.

    Attributes:
        images: (batch, num_crops, patches, patch_values).
        image_masks: (batch, num_crops, patches).
        image_features: (batch, num_crops, pooled, hidden), in place of the two above.
        image_input_idx: (batch, num_crops, pooled), where in the sequence each image token is added; below 0 nowhere.
    """

    images: torch.Tensor | None = None
    image_masks: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    image_input_idx: torch.Tensor | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.images, self.image_masks, self.image_features))

    def check(self, config: MolmoConfig, batch: int, num_new: int, num_past: int) -> None:
        """Refuse pictures that the model cannot see, or that do not fit the text.

        Raises:
            RequestError: so it is.
        """
        indices = self.image_input_idx
        if not self:
            if indices is not None and not torch.compiler.is_compiling() and bool((indices >= 0).any()):
                msg = "image_input_idx places image tokens, but no picture is given; pass images or image_features"
                raise RequestError(msg)
            return
        if config.vision is None:
            msg = "pictures were given, but this checkpoint reads text only; leave images out or load one with vision"
            raise RequestError(msg)
        if num_past:
            msg = "pictures were given for a continued sequence; give them with the prompt, and only there"
            raise RequestError(msg)
        if (self.images is None) == (self.image_features is None) or indices is None:
            msg = "give image_input_idx, and either images (with image_masks) or image_features, not both"
            raise RequestError(msg)
        self._check_shapes(config, batch)
        if not torch.compiler.is_compiling() and indices.numel() and int(indices.max()) >= num_new:
            last = int(indices.max())
            msg = f"image_input_idx places a token at {last} of a sequence of {num_new}; do not cut image tokens off"
            raise RequestError(msg)

    def _check_shapes(self, config: MolmoConfig, batch: int) -> None:
        vision = config.vision
        assert vision is not None
        assert self.image_input_idx is not None
        pictures = self.images if self.image_features is None else self.image_features
        counted = self.image_input_idx if self.image_input_idx.ndim == 3 else pictures
        num_crops = counted.shape[1] if counted is not None and counted.ndim > 1 else 0
        wanted = {
            "image_input_idx": (batch, num_crops, vision.num_pooled),
            "images": (batch, num_crops, vision.num_patches, vision.patch_values),
            "image_masks": (batch, num_crops, vision.num_patches),
            "image_features": (batch, num_crops, vision.num_pooled, config.text_config.hidden_size),
        }
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                msg = f"{name} is {tuple(tensor.shape)}; with {batch} rows of {num_crops} crops it must be {shape}"
                raise RequestError(msg)

"""Generation by transformers' own loop: prompts padded with -1 on any side, pictures with the prompt only."""

from typing import Any

import torch

from blockexport.models.molmo.inputs import last_real, past_length, positions_of, real_tokens

_PICTURES = ("images", "image_masks", "image_features", "image_input_idx")


class PromptedGeneration:
    """What differs from a text model in `generate`; stands in front of `GenerationMixin` among the bases."""

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **options: Any) -> Any:
        """Generate as transformers does, from `input_ids` (batch, tokens) in which -1 is padding.

        Args:
            inputs: the prompt, also taken by the name `input_ids`.
            args: as transformers takes them.
            options: as transformers takes them, and `images`, `image_masks`, `image_input_idx` or `image_features`.
                `attention_mask` may be longer than the prompt. What looks at the prompt's ids, such as a repetition
                penalty, finds those of padding and pictures among them, which no head predicts.
        """
        prompt = options.get("input_ids") if inputs is None else inputs
        if prompt is not None:
            mask, num_past = options.get("attention_mask"), past_length(options.get("past_key_values"))
            # A mask that is longer than a continued prompt covers the past, which the prompt then does not repeat.
            num_before = num_past if mask is not None and mask.shape[1] > prompt.shape[1] else 0
            real = real_tokens(prompt, mask, num_before, has_ids=True)
            # One column for the token to come: transformers warns of a mask as wide as the prompt that ends in 0.
            ahead = real.new_ones(real.shape[0], 0 if num_past else 1)
            options["attention_mask"] = torch.cat([real, ahead], dim=1).long()
            options.setdefault("append_last_valid_logits", last_real(real) - num_past)
            # Behind padding on the right, transformers would count on from the padding.
            options.setdefault("position_ids", positions_of(real))
        return super().generate(inputs, *args, **options)  # type: ignore[misc]

    @staticmethod
    def create_masks_for_generate(attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor | None:
        """Leave the mask (batch, tokens) as it is, also for static caches: `forward` counts positions on it."""
        return attention_mask

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Arguments of the next forward; each gives the logits of one position.

        transformers takes an argument called `kwargs` for leave to hand on everything that `forward` takes.
        """
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        prepared["last_logits_only"] = True
        if not is_first_iteration:
            prepared.pop("append_last_valid_logits", None)
            # Without a cache every step sees the whole sequence anew.
            if kwargs.get("use_cache", True):
                for name in _PICTURES:
                    prepared.pop(name, None)
        return prepared

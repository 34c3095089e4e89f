"""The model: a transformers text stack whose embeddings are joined by image tokens."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from blockexport.errors import RequestError
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.encoder import PADDING, ImageEncoder
from blockexport.models.molmo.generation import PromptedGeneration
from blockexport.models.molmo.inputs import Pictures, additive_mask, past_length, positions_of, real_tokens
from blockexport.models.molmo.pooling import PaddingMarks
from blockexport.models.molmo.vision import VisionTower
from blockexport.models.molmo.write import write_checkpoint


class MolmoForCausalLM(PromptedGeneration, PreTrainedModel, GenerationMixin):
    """Molmo and MolmoE.

    Attributes:
        language_model: transformers' own `Qwen2Model`, `LlamaModel`, `Olmo2Model` or `OlmoeModel`, whose table of
            embeddings also holds the extra tokens.
        lm_head: predicts the tokens of the base vocabulary only.
        image_encoder: the vision side; None for a checkpoint that reads text only.
    """

    config_class = MolmoConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision
        self.language_model = AutoModel.from_config(text)
        self.language_model.embed_tokens = nn.Embedding(text.vocab_size + config.num_extra_tokens, text.hidden_size)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.image_encoder = None if vision is None else ImageEncoder(config, vision)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of embeddings, extra tokens included."""
        return self.language_model.embed_tokens  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write the published layout, which is what `load_model` reads."""
        write_checkpoint(self, Path(save_directory))

    def encode_images(self, images: torch.Tensor, image_masks: torch.Tensor | None = None) -> torch.Tensor:
        """Image tokens of crops; the part of the model that no depth of the text stack changes.

        Args:
            images: (batch, num_crops, patches, patch_values); crops of padding are -1 throughout.
            image_masks: (batch, num_crops, patches), the share of a patch that the picture covers.

        Returns:
            (batch, num_crops, pooled, hidden), what `forward` takes as `image_features`.

        Raises:
            RequestError: the checkpoint reads text only.
        """
        if self.image_encoder is None:
            msg = "this checkpoint reads text only and cannot encode images; load one with a vision tower"
            raise RequestError(msg)
        features: torch.Tensor = self.image_encoder(images, image_masks)
        return features

    def embed(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor | None = None,
        image_input_idx: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings of tokens, with image tokens added to those they stand for.

        Args:
            input_ids: (batch, seq); padding is -1.
            image_features: (batch, num_crops, pooled, hidden).
            image_input_idx: (batch, num_crops, pooled), columns of `input_ids`; below 0 for tokens that are dropped.

        Returns:
            (batch, seq, hidden).
        """
        embeddings: torch.Tensor = self.language_model.embed_tokens(input_ids * (input_ids != PADDING))
        if image_features is None or image_input_idx is None:
            return embeddings
        batch, seq, hidden = embeddings.shape
        # What is dropped goes to a row of its own, behind the sequence of the same sample.
        target = torch.where(image_input_idx < 0, seq, image_input_idx).flatten(1)
        with_bin = torch.cat([embeddings, embeddings.new_zeros(batch, 1, hidden)], dim=1)
        added = image_features.flatten(1, 2).to(embeddings.dtype)
        return with_bin.scatter_add(1, target[..., None].expand(-1, -1, hidden), added)[:, :seq]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        images: torch.Tensor | None = None,
        image_masks: torch.Tensor | None = None,
        image_input_idx: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
        append_last_valid_logits: torch.Tensor | None = None,
        last_logits_only: bool = False,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a batch in which -1 is padding, wherever it stands and in whatever input.

        Args:
            input_ids: (batch, seq).
            attention_mask: (batch, cached + seq or more) of 0 and 1; None when only -1 is padding.
            position_ids: (batch, seq); counted over what is no padding when None.
            past_key_values: a transformers cache.
            inputs_embeds: (batch, seq, hidden), in place of `input_ids` and pictures.
            images: (batch, num_crops, patches, patch_values).
            image_masks: (batch, num_crops, patches).
            image_input_idx: (batch, num_crops, pooled).
            image_features: what `encode_images` gave, in place of images and masks.
            attention_bias: (batch, 1, length, length) flags or numbers in place of causal attention.
            append_last_valid_logits: (batch,) column of each row's last token; its logits stand in the last column.
            last_logits_only: give the last column only.
            use_cache: keep keys and values.
            output_hidden_states: give what entered each block and what left the final norm, blocks + 1 tensors.
            options: further arguments of the text stack.

        Returns:
            Logits (batch, seq or 1, vocabulary) and what was asked for besides.

        Raises:
            RequestError: inputs that contradict one another or the checkpoint.
        """
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or (input_ids is not None and inputs_embeds is not None):
            msg = "give either input_ids or inputs_embeds"
            raise RequestError(msg)
        pictures = Pictures(images, image_masks, image_features, image_input_idx)
        num_past, num_new = past_length(past_key_values), given.shape[1]
        pictures.check(self.config, given.shape[0], num_new, num_past)
        real = real_tokens(given, attention_mask, num_past, has_ids=input_ids is not None)
        mask = real
        if attention_bias is not None:
            mask = additive_mask(attention_bias, real, num_new, self.lm_head.weight.dtype)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds if input_ids is None else self._embed_all(input_ids, pictures),
            attention_mask=mask,
            position_ids=positions_of(real)[:, num_past:] if position_ids is None else position_ids,
            past_key_values=past_key_values,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            output_hidden_states=output_hidden_states,
            **options,
        )
        kept = _kept_columns(outputs.last_hidden_state, append_last_valid_logits, only_last=last_logits_only)
        return CausalLMOutputWithPast(
            logits=self.lm_head(kept),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _embed_all(self, input_ids: torch.Tensor, pictures: Pictures) -> torch.Tensor:
        features = pictures.image_features
        # A batch of text only may come with no crop at all.
        if pictures.images is not None and pictures.images.shape[1]:
            features = self.encode_images(pictures.images, pictures.image_masks)
        return self.embed(input_ids, features, pictures.image_input_idx)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        spread = self.config.text_config.initializer_range
        if isinstance(module, VisionTower):
            nn.init.normal_(module.class_embedding, std=spread)
            nn.init.normal_(module.position_embedding, std=spread)
        elif isinstance(module, PaddingMarks):
            nn.init.zeros_(module.embedding)


def _kept_columns(hidden: torch.Tensor, last: torch.Tensor | None, *, only_last: bool) -> torch.Tensor:
    """Hidden states (batch, seq, hidden) that logits are wanted for; `last` names each row's true last column."""
    if last is None:
        return hidden[:, -1:] if only_last else hidden
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    final = hidden[rows, last][:, None]
    return final if only_last else torch.cat([hidden[:, :-1], final], dim=1)

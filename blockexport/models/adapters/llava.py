"""LLaVA: a CLIP or SigLIP tower whose patches replace the image tokens of a text model (arXiv:2304.08485)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from blockexport.core.model import ModelKind, VisionSpec
from blockexport.models.adapter import TreeAdapter, block_list


class LlavaAdapter(TreeAdapter):
    """Blocks are those of the text stack; the tower's are a list of their own."""

    def blocks(self, module: Any) -> nn.ModuleList:
        """The text stack's blocks."""
        return block_list(module.model.language_model, self._num_blocks(module))

    def kind(self, module: nn.Module) -> ModelKind:
        """Decoder; a picture is one more input."""
        return "decoder"

    def vision(self, module: Any) -> VisionSpec:
        """Sizes of pictures and image tokens."""
        config, tower = module.config, module.config.vision_config
        num_patches = (tower.image_size // tower.patch_size) ** 2
        blocks = self._tower_blocks(module)
        return VisionSpec(
            num_blocks=len(self.vision_blocks(module)),
            block_path=next(path for path, child in module.named_modules() if child is blocks),
            image_shape=(tower.num_channels, tower.image_size, tower.image_size),
            num_pooled=num_patches + (config.vision_feature_select_strategy == "full"),
            hidden_size=config.text_config.hidden_size,
            joins="replace",
            image_token=config.image_token_id,
        )

    def vision_blocks(self, module: Any) -> nn.ModuleList:
        """The tower's blocks up to the last one whose output is read."""
        blocks, layers = self._tower_blocks(module), module.config.vision_feature_layer
        # Layer 0 is what enters the first block.
        counts = [layer % (len(blocks) + 1) for layer in ([layers] if isinstance(layers, int) else layers)]
        used: nn.ModuleList = blocks[: max(counts)]
        return used

    def _tower_blocks(self, module: Any) -> nn.ModuleList:
        return block_list(module.model.vision_tower, module.config.vision_config.num_hidden_layers)

    def encode_images(self, module: Any, images: torch.Tensor, image_masks: torch.Tensor | None) -> torch.Tensor:
        """Tower and projector; pictures have no masks.

        The model's own `get_image_features` makes a list of the crops, which fixes their number in a trace.
        """
        config = module.config
        entering = module.model.vision_tower(images, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        chosen = [entering[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if config.vision_feature_select_strategy == "default":
            chosen = [hidden_states[:, 1:] for hidden_states in chosen]
        features: torch.Tensor = module.model.multi_modal_projector(torch.cat(chosen, dim=-1))
        return features

    def picture_arguments(
        self, module: nn.Module, pictures: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Pictures in the order of their tokens; where these are, the model finds itself."""
        is_real = (pictures["image_input_idx"] >= 0).any(-1)
        return {"pixel_values": pictures["images"][is_real]} if is_real.any() else {}

"""Molmo's place in the adapter seam."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockexport.core.model import KvSpec, ModelKind, VisionSpec
from blockexport.models.adapter import TreeAdapter
from blockexport.models.molmo.checkpoint import read_checkpoint
from blockexport.models.reading import ReadOptions


class MolmoAdapter(TreeAdapter):
    """Blocks are those of the text stack; the vision tower's have a list and a mask of their own."""

    def read(self, folder: Path, entries: Mapping[str, Any], options: ReadOptions) -> nn.Module:
        """Build the model from a folder in the published layout, without the Python files that lie in it."""
        return read_checkpoint(folder, entries, options)

    def blocks(self, module: Any) -> nn.ModuleList:
        """The text stack's blocks."""
        blocks: nn.ModuleList = module.language_model.layers
        return blocks

    def kind(self, module: nn.Module) -> ModelKind:
        """Decoder; a picture is one more input."""
        return "decoder"

    def kv_layout(self, module: Any) -> tuple[KvSpec, ...]:
        """The same row for every block."""
        text = module.config.text_config
        row = KvSpec(num_heads=text.num_key_value_heads, head_dim=text.hidden_size // text.num_attention_heads)
        return tuple(row for _ in range(text.num_hidden_layers))

    def vision(self, module: Any) -> VisionSpec | None:
        """Sizes of pictures and image tokens; None for a checkpoint that reads text only."""
        geometry = module.config.vision
        if geometry is None:
            return None
        return VisionSpec(
            num_blocks=max(geometry.feature_blocks) + 1,
            block_path="image_encoder.tower.blocks",
            image_shape=(geometry.num_patches, geometry.patch_values),
            mask_shape=(geometry.num_patches,),
            num_pooled=geometry.num_pooled,
            hidden_size=module.config.text_config.hidden_size,
            joins="add",
        )

    def vision_blocks(self, module: Any) -> nn.ModuleList:
        """The tower's blocks, without those that nobody reads."""
        tower = module.image_encoder.tower
        blocks: nn.ModuleList = tower.blocks[: max(tower.feature_blocks) + 1]
        return blocks

    def encode_images(self, module: Any, images: torch.Tensor, image_masks: torch.Tensor | None) -> torch.Tensor:
        """Crops as a batch of one."""
        masks = None if image_masks is None else image_masks[None]
        features: torch.Tensor = module.encode_images(images[None], masks)[0]
        return features

    def picture_arguments(
        self, module: nn.Module, pictures: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """As they are: the model's own names."""
        return dict(pictures)

"""The whole vision side: crops in, image tokens of the text stack's width out."""

import torch
from torch import nn

from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.geometry import VisionGeometry
from blockexport.models.molmo.pooling import PaddingMarks, WindowPooling
from blockexport.models.molmo.vision import VisionTower

PADDING = -1
"""What a batch is padded with: token ids, pixels, masks and indices alike."""


class Projector(nn.Module):
    """Gated map into the text stack: down(silu(gate x) * up x), without biases."""

    def __init__(self, geometry: VisionGeometry, text_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(geometry.hidden_size, geometry.projector_size, bias=False)
        self.up = nn.Linear(geometry.hidden_size, geometry.projector_size, bias=False)
        self.down = nn.Linear(geometry.projector_size, text_size, bias=False)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map (crops, pooled, hidden) to (crops, pooled, text hidden)."""
        output: torch.Tensor = self.down(nn.functional.silu(self.gate(pooled)) * self.up(pooled))
        return output


class ImageEncoder(nn.Module):
    """Tower, padding marks, pooling and projector."""

    def __init__(self, config: MolmoConfig, geometry: VisionGeometry) -> None:
        super().__init__()
        self.needs_every_pixel = geometry.needs_every_pixel
        self.tower = VisionTower(config, geometry)
        self.padding_marks = PaddingMarks(geometry)
        self.pooling = WindowPooling(config, geometry)
        self.projector = Projector(geometry, config.text_config.hidden_size)

    def forward(self, images: torch.Tensor, image_masks: torch.Tensor | None = None) -> torch.Tensor:
        """Encode crops.

        Args:
            images: (batch, num_crops, patches, patch_values); crops of padding are -1 throughout.
            image_masks: (batch, num_crops, patches), the share of a patch that the picture covers; None when all is
                picture.

        Returns:
            (batch, num_crops, pooled, text hidden).
        """
        batch, num_crops = images.shape[:2]
        crops = images.flatten(0, 1)
        features = self.tower(crops.to(self.tower.patch_embedding.weight.dtype))
        features = features * self._is_picture(crops)[:, None, None].to(features.dtype)
        if image_masks is not None:
            features = self.padding_marks(features, image_masks.flatten(0, 1))
        tokens: torch.Tensor = self.projector(self.pooling(features))
        by_sample: torch.Tensor = tokens.unflatten(0, (batch, num_crops))
        return by_sample

    def _is_picture(self, crops: torch.Tensor) -> torch.Tensor:
        """Which crops (crops, patches, patch_values) are no padding, (crops,)."""
        differs = (crops != PADDING).flatten(1)
        return differs.all(1) if self.needs_every_pixel else differs.any(1)

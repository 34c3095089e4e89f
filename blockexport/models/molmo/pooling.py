"""From features of patches to image tokens: marks for padding, and attention over windows of patches."""

import torch
from torch import nn

from blockexport.models.molmo.attention import VisionAttention
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.geometry import POOLING, VisionGeometry


class PaddingMarks(nn.Module):
    """Two learned vectors that tell patches of padding, and patches with some padding, from full ones."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(2, geometry.feature_size))

    def forward(self, features: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
        """Add the marks.

        Args:
            features: (crops, patches, features).
            covered: (crops, patches), the share of a patch that the picture covers. Values below 0, which the
                preprocessing gives to whole crops, count as partly covered: the weights were trained so.
        """
        is_empty = (covered == 0).to(features.dtype)[..., None]
        is_partial = ((covered < 1) & (covered != 0)).to(features.dtype)[..., None]
        return features + is_empty * self.embedding[0] + is_partial * self.embedding[1]


class WindowPooling(nn.Module):
    """Attention pooling of 2x2 patches, whose mean is the query."""

    def __init__(self, config: MolmoConfig, geometry: VisionGeometry) -> None:
        super().__init__()
        self.grid, self.pooled_grid = geometry.grid, geometry.pooled_grid
        self.attention = VisionAttention(config, geometry, geometry.feature_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool (crops, patches, features) to (crops, pooled, hidden)."""
        rows, columns = self.grid
        on_grid = features.unflatten(1, self.grid)
        if rows % POOLING or columns % POOLING:
            on_grid = nn.functional.pad(on_grid, (0, 0, 0, columns % POOLING, 0, rows % POOLING))
        # (crops, rows, 2, columns, 2, features) -> (crops, rows, columns, 2, 2, features)
        windows = on_grid.unflatten(2, (-1, POOLING)).unflatten(1, (-1, POOLING)).transpose(2, 3)
        windows = windows.flatten(3, 4).flatten(0, 2)
        pooled: torch.Tensor = self.attention(windows.mean(1, keepdim=True), windows)
        return pooled.reshape(-1, self.pooled_grid[0] * self.pooled_grid[1], pooled.shape[-1])

"""The vision tower: CLIP's ViT, of which some blocks' outputs are the features of a patch."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from blockexport.models.molmo.attention import VisionAttention
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.geometry import VisionGeometry

_PRE_NORM_EPS = 1e-5


class VisionMlp(nn.Module):
    """Feed-forward branch: x * sigmoid(1.702 x) between two linear maps with biases."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.up = nn.Linear(geometry.hidden_size, geometry.mlp_size)
        self.down = nn.Linear(geometry.mlp_size, geometry.hidden_size)
        self.activation = ACT2FN["quick_gelu"]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (crops, tokens, hidden) to the same shape."""
        output: torch.Tensor = self.down(self.activation(self.up(hidden_states)))
        return output


class VisionBlock(nn.Module):
    """One block of the tower, the prunable unit of its own depth mask."""

    def __init__(self, config: MolmoConfig, geometry: VisionGeometry) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(geometry.hidden_size, geometry.norm_eps)
        self.attention = VisionAttention(config, geometry, geometry.hidden_size)
        self.mlp_norm = nn.LayerNorm(geometry.hidden_size, geometry.norm_eps)
        self.mlp = VisionMlp(geometry)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (crops, tokens, hidden) to the same shape."""
        normed = self.attention_norm(hidden_states)
        hidden_states = hidden_states + self.attention(normed, normed)
        output: torch.Tensor = hidden_states + self.mlp(self.mlp_norm(hidden_states))
        return output


class VisionTower(nn.Module):
    """Patches of crops to features of patches.

    There is no norm behind the last block, and blocks behind the last one whose output is read do not run.
    """

    def __init__(self, config: MolmoConfig, geometry: VisionGeometry) -> None:
        super().__init__()
        self.feature_blocks = geometry.feature_blocks
        self.class_embedding = nn.Parameter(torch.empty(geometry.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(1 + geometry.num_patches, geometry.hidden_size))
        self.patch_embedding = nn.Linear(geometry.patch_values, geometry.hidden_size, bias=False)
        self.pre_norm = nn.LayerNorm(geometry.hidden_size, _PRE_NORM_EPS)
        self.blocks = nn.ModuleList(VisionBlock(config, geometry) for _ in range(geometry.num_blocks))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Features of crops.

        Args:
            patches: (crops, patches, patch_values), row by row from the upper left, each patch height, width, colour.

        Returns:
            (crops, patches, hidden x number of feature blocks).
        """
        embedded = self.patch_embedding(patches)
        marker = self.class_embedding.expand(embedded.shape[0], 1, -1)
        hidden_states = self.pre_norm(torch.cat([marker, embedded], dim=1) + self.position_embedding)
        outputs = []
        for block in self.blocks[: max(self.feature_blocks) + 1]:
            hidden_states = block(hidden_states)
            outputs.append(hidden_states)
        return torch.cat([outputs[block][:, 1:] for block in self.feature_blocks], dim=-1)

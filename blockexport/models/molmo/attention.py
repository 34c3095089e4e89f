"""Multi-head attention of the vision side: every query sees every key."""

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.geometry import VisionGeometry


class VisionAttention(nn.Module):
    """Attention with biases in all four projections, computed through transformers' attention interface.

    Args:
        config: says which implementation attends.
        geometry: widths and heads.
        input_size: width of what attends and is attended to.
    """

    is_causal = False
    # What transformers' attention functions ask of the module that calls them.
    num_key_value_groups = 1

    def __init__(self, config: MolmoConfig, geometry: VisionGeometry, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.head_dim = geometry.head_dim
        inner = geometry.num_heads * geometry.head_dim
        self.query = nn.Linear(input_size, inner)
        self.key = nn.Linear(input_size, inner)
        self.value = nn.Linear(input_size, inner)
        self.out = nn.Linear(inner, geometry.hidden_size)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Attend from `queries` (rows, num_queries, input) to `memory` (rows, num_keys, input).

        Returns:
            (rows, num_queries, hidden).
        """
        # Scores are taken in float32, as in training.
        query = self._heads(self.query(queries)).to(torch.float32)
        key = self._heads(self.key(memory)).to(torch.float32)
        value = self._heads(self.value(memory)).to(torch.float32)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, sdpa_attention_forward)  # noqa: SLF001
        attended = attend(self, query, key, value, None, scaling=self.head_dim**-0.5, is_causal=False)[0]
        output: torch.Tensor = self.out(attended.flatten(-2).to(queries.dtype))
        return output

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads

"""Cached attention in which some new tokens see one another in both directions, in standard ONNX operators.

ONNX Runtime's operator for caches is causal whatever mask it is given, so keys and values are scattered into the cache
by operators of their own, in place, and `Attention` gets the whole mask. It attends over the capacity of the cache,
also where nothing is filled in yet.
"""

import torch
from torch.onnx import ops as onnx_ops

from blockexport.export.ops import slots_and_sight


def mutual_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    last_slot: torch.Tensor,
    total_tokens: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
    mutual: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The decomposition of `ops.cached_attention` with `mutual`; see there."""
    batch, num_heads, seq, head_dim = query.shape
    slots, visible = slots_and_sight(last_slot, total_tokens, seq, past_key.shape[2], window, mutual)
    index = slots[:, None, :, None].expand(key.shape)
    present_key, present_value = past_key.scatter(2, index, key), past_value.scatter(2, index, value)
    attended: torch.Tensor = onnx_ops.symbolic(
        "Attention",
        (query, present_key, present_value, visible[:, None]),
        {"scale": scale, "softcap": softcap},
        dtype=query.dtype,
        shape=query.shape,
        version=23,
    )
    return attended.transpose(1, 2).reshape(batch, seq, num_heads * head_dim), present_key, present_value

"""Cached attention in which some new tokens see one another in both directions, in standard ONNX operators.

ONNX Runtime's operator for caches is causal whatever mask it is given, so keys and values are scattered into the cache
by operators of their own, in place, and `Attention` gets the whole mask. It attends over the capacity of the cache,
also where nothing is filled in yet.
"""

import torch
from torch.onnx import ops as onnx_ops

from blockexport.export.ops import NO_WINDOW


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
    capacity = past_key.shape[2]
    first = torch.where(total_tokens == seq, torch.zeros_like(last_slot), last_slot + 1 - seq)
    slots = first.long()[:, None] + torch.arange(seq)
    index = slots[:, None, :, None].expand(key.shape)
    present_key, present_value = past_key.scatter(2, index, key), past_value.scatter(2, index, value)
    distance = slots[:, :, None] - torch.arange(capacity)
    visible = distance >= 0
    if window != NO_WINDOW:
        visible = visible & (distance < window)
    # As numbers: the operator that scatters knows no flags.
    is_mutual = torch.zeros(batch, capacity).scatter(1, slots, mutual.float()) > 0
    visible = visible | (mutual[:, :, None] & is_mutual[:, None, :])
    attended: torch.Tensor = onnx_ops.symbolic(
        "Attention",
        (query, present_key, present_value, visible[:, None]),
        {"scale": scale, "softcap": softcap},
        dtype=query.dtype,
        shape=query.shape,
        version=23,
    )
    return attended.transpose(1, 2).reshape(batch, seq, num_heads * head_dim), present_key, present_value

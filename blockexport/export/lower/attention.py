"""Attention in torch's own operators: what the marked operators mean, in a form that its compilers can follow.

Unlike the eager implementations in `export.ops` these branch on no value, run on any device, and write new keys and
values into the cache they are given.
"""

import torch

from blockexport.export.ops import NO_SOFTCAP, slots_and_sight


def cached_attention(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`export.ops.cached_attention`, in place: the cache that is returned is the one that was given."""
    batch, num_heads, seq, head_dim = query.shape
    num_kv_heads, capacity = past_key.shape[1], past_key.shape[2]
    slots, visible = slots_and_sight(last_slot, total_tokens, seq, capacity, window)
    index = slots[:, None, :, None].expand(batch, num_kv_heads, seq, head_dim)
    past_key.scatter_(2, index, key)
    past_value.scatter_(2, index, value)
    # Query heads that share keys follow one another as if they were tokens, so that keys need not be repeated.
    groups = num_heads // num_kv_heads
    grouped = query.reshape(batch, num_kv_heads, groups * seq, head_dim)
    visible = visible[:, None].expand(batch, groups, seq, capacity).reshape(batch, 1, groups * seq, capacity)
    attended = _attend(grouped, past_key, past_value, visible, scale, softcap)
    attended = attended.reshape(batch, num_heads, seq, head_dim).transpose(1, 2)
    return attended.reshape(batch, seq, num_heads * head_dim), past_key, past_value


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float, softcap: float
) -> torch.Tensor:
    if softcap == NO_SOFTCAP:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * scale / softcap)
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value


def full_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """`export.ops.full_attention`."""
    batch, num_heads, seq, head_dim = query.shape
    visible = torch.ones(seq, key.shape[2], dtype=torch.bool, device=query.device)
    if causal:
        visible = visible.tril()
    if attention_mask is not None:
        visible = visible & (attention_mask != 0)[:, None, None, :]
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    return attended.transpose(1, 2).reshape(batch, seq, num_heads * head_dim)

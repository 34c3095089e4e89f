"""The operators a marked program consists of besides aten: block boundaries, attention and mixtures of experts.

They stay opaque through tracing, so that a depth can be cut at the boundaries and each target can choose its own
attention and its own way to bring tokens and experts together. Their eager implementations define what they mean.
"""

import torch

# Sliding windows and softcaps are absent more often than not; operator schemas have no better "none" for numbers.
NO_WINDOW = -1
NO_SOFTCAP = 0.0


@torch.library.custom_op("blockexport::boundary", mutates_args=())
def boundary(hidden_states: torch.Tensor, unit: str, side: str) -> torch.Tensor:
    """Mark where the residual stream (batch, seq, hidden) enters (`side="in"`) or leaves (`"out"`) a prunable unit."""
    return hidden_states.clone()


@boundary.register_fake
def _(hidden_states: torch.Tensor, unit: str, side: str) -> torch.Tensor:
    return torch.empty_like(hidden_states)


def slots_and_sight(
    last_slot: torch.Tensor,
    total_tokens: torch.Tensor,
    seq: int,
    capacity: int,
    window: int,
    mutual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where new tokens go and what they see, for every form of `cached_attention`; its arguments.

    Branches on no value, so that it can be traced.

    Returns:
        Slots (batch, seq), and whether a new token sees what a slot holds, (batch, seq, capacity).
    """
    first = torch.where(total_tokens == seq, torch.zeros_like(last_slot), last_slot + 1 - seq)
    slots = first.long()[:, None] + torch.arange(seq, device=last_slot.device)
    distance = slots[:, :, None] - torch.arange(capacity, device=last_slot.device)
    visible = distance >= 0
    if window != NO_WINDOW:
        visible = visible & (distance < window)
    if mutual is not None:
        # As numbers: ONNX's operator that scatters knows no flags.
        flags = torch.zeros(mutual.shape[0], capacity, device=last_slot.device).scatter(1, slots, mutual.float()) > 0
        visible = visible | (mutual[:, :, None] & flags[:, None, :])
    return slots, visible


@torch.library.custom_op("blockexport::cached_attention", mutates_args=())
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
    mutual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal grouped-query attention over a fixed-capacity cache, each row at its own length.

    Args:
        query: (batch, heads, seq, head_dim), already rotated.
        key: (batch, kv_heads, seq, head_dim), already rotated.
        value: (batch, kv_heads, seq, head_dim).
        past_key: (batch, kv_heads, capacity, head_dim).
        past_value: (batch, kv_heads, capacity, head_dim).
        last_slot: (batch,) int32, cache slot of each row's last new token; the row's new tokens fill the `seq`
            slots that end there. Keys carry their positions, so a token may lie in any slot, behind those it sees;
            a window counts slots. A first prompt fills slots 0 to seq-1 instead, whatever the row's length, so a
            row padded on the right leaves rubbish behind its end that later tokens overwrite.
        total_tokens: () int32, tokens of the longest row; no `last_slot` is larger than it less one.
        scale: factor on the scores.
        window: tokens a query sees, itself included; NO_WINDOW for all.
        softcap: scores become softcap * tanh(score / softcap); NO_SOFTCAP for none.
        mutual: (batch, seq) flags of new tokens that see one another, those behind them too; None for none.

    Returns:
        Attended values (batch, seq, heads * head_dim) and the cache with the new tokens in it.
    """
    batch, num_heads, seq, head_dim = query.shape
    num_kv_heads, capacity = past_key.shape[1], past_key.shape[2]
    slots, visible = slots_and_sight(last_slot, total_tokens, seq, capacity, window, mutual)
    index = slots[:, None, :, None].expand(batch, num_kv_heads, seq, head_dim)
    present_key, present_value = past_key.scatter(2, index, key), past_value.scatter(2, index, value)
    keys = present_key.repeat_interleave(num_heads // num_kv_heads, dim=1)
    values = present_value.repeat_interleave(num_heads // num_kv_heads, dim=1)
    scores = query @ keys.transpose(-1, -2) * scale
    if softcap != NO_SOFTCAP:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    attended = (weights @ values).transpose(1, 2).reshape(batch, seq, num_heads * head_dim)
    return attended, present_key, present_value


@cached_attention.register_fake
def _(
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
    mutual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, num_heads, seq, head_dim = query.shape
    attended = query.new_empty(batch, seq, num_heads * head_dim)
    return attended, torch.empty_like(past_key), torch.empty_like(past_value)


@torch.library.custom_op("blockexport::full_attention", mutates_args=())
def full_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """Single-pass attention without a cache.

    Args:
        query: (batch, heads, seq, head_dim).
        key: (batch, heads, num_keys, head_dim).
        value: (batch, heads, num_keys, head_dim).
        attention_mask: (batch, num_keys), nonzero for real tokens; None when every position is real.
        scale: factor on the scores.
        causal: whether a position sees only itself and earlier ones.

    Returns:
        Attended values (batch, seq, heads * head_dim).
    """
    batch, num_heads, seq, head_dim = query.shape
    num_keys = key.shape[2]
    visible = torch.ones(seq, num_keys, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    visible = visible.expand(batch, 1, seq, num_keys)
    if attention_mask is not None:
        visible = visible & (attention_mask != 0)[:, None, None, :]
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    return attended.transpose(1, 2).reshape(batch, seq, num_heads * head_dim)


@full_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    batch, num_heads, seq, head_dim = query.shape
    return query.new_empty(batch, seq, num_heads * head_dim)


@torch.library.custom_op("blockexport::gated_experts", mutates_args=())
def gated_experts(
    hidden_states: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """Of each token the weighted sum of what its experts make of it, down(silu(gate(x)) * up(x)).

    Args:
        hidden_states: (tokens, hidden).
        experts: (tokens, chosen), the different experts of each token.
        weights: (tokens, chosen), not negative.
        gate_up: (experts, 2 * inner, hidden), the rows of the gates before those of what they gate.
        down: (experts, hidden, inner).

    Returns:
        (tokens, hidden).
    """
    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
    total = torch.zeros_like(hidden_states)
    for expert in experts.unique().tolist():
        tokens, place = torch.where(experts == expert)
        gate, up = linear(hidden_states[tokens], gate_up[expert]).chunk(2, -1)
        made = linear(silu(gate) * up, down[expert])
        total.index_add_(0, tokens, made * weights[tokens, place, None])
    return total


@gated_experts.register_fake
def _(
    hidden_states: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    return torch.empty_like(hidden_states)

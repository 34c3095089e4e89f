"""What each kernel computes, in plain torch and written to be read; in fp64 it is what the kernels are held to."""

import torch
from torch import Tensor


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    holes: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Append one token to each row of a cache and attend to what the row holds, softmax(q k^T scale) v.

    Args:
        query: (batch, heads, head_dim); heads in groups that share a key head (arXiv:2305.13245).
        key: (batch, kv_heads, head_dim), its position turned into it; `value` likewise.
        value: see `key`.
        keys: the cache, (batch, kv_heads, capacity, head_dim), written in place; `values` likewise.
        values: see `keys`.
        slots: (batch,) where each row's new token goes; it sees itself and all slots before. -1: the row has no token.
        holes: (batch, holes, 2) first slot and end of what this block was not run for; None for no holes.
        scale: of the scores; None for 1 / sqrt(head_dim).

    Returns:
        (batch, heads, head_dim); zeros for rows without a token.
    """
    out = torch.zeros_like(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    shared = query.shape[1] // key.shape[1]
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        seen = torch.ones(slot + 1, dtype=torch.bool, device=query.device)
        for first, end in [] if holes is None else holes[row].tolist():
            seen[first:end] = False
        seen[slot] = True
        keys[row, :, slot], values[row, :, slot] = key[row], value[row]
        for head in range(query.shape[1]):
            scores = keys[row, head // shared, : slot + 1][seen] @ query[row, head] * scale
            out[row, head] = scores.softmax(-1) @ values[row, head // shared, : slot + 1][seen]
    return out


def residual_rmsnorm(residual: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    """Add a branch to the residual stream in place and normalise the sum, x / sqrt(mean(x^2) + epsilon) * weight.

    A span of skipped blocks adds nothing and normalises nothing, so the branch is that of the last block before it and
    the weight that of the first block behind it.

    Args:
        residual: (..., hidden), written in place.
        branch: (..., hidden); None if nothing is added, as before the first block.
        weight: (hidden,)
        epsilon: of the norm (arXiv:1910.07467).

    Returns:
        (..., hidden)
    """
    if branch is not None:
        residual += branch
    wide = residual.double() if residual.dtype == torch.float64 else residual.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (normed * weight.to(wide.dtype)).to(residual.dtype)


def kv_backfill(
    hidden: Tensor,
    norm: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    cos_sin: tuple[Tensor, Tensor] | None,
    epsilon: float,
) -> Tensor:
    """Keys, or without angles values, that one skipped block would have had for tokens that passed it by.

    The hidden state at the block's entry is that of the level that ran (state propagation, arXiv:2207.07061).

    Args:
        hidden: (tokens, hidden) the residual stream where the block was skipped.
        norm: (hidden,) weight of the block's first RMSNorm.
        projection: (kv_heads, head_dim, hidden)
        bias: (kv_heads, head_dim) or None.
        cos_sin: (tokens, head_dim / 2) each: rotary embedding by halves (arXiv:2104.09864).
        epsilon: of the norm.

    Returns:
        (tokens, kv_heads, head_dim)
    """
    normed = residual_rmsnorm(hidden, None, norm, epsilon)
    out = torch.einsum("th,ndh->tnd", normed, projection)
    if bias is not None:
        out = out + bias
    if cos_sin is None:
        return out
    cos, sin = (angles[:, None] for angles in cos_sin)
    first, second = out.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def dequantise(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """The matrix (outputs, inputs) that codes of ONNX Runtime's `MatMulNBits` stand for, in the type of the scales.

    Args:
        codes: (outputs, groups, group_size * bits / 8) uint8; of two 4-bit codes in a byte the first is the low one.
        scales: (outputs, groups)
        zeros: (outputs, ceil(groups * bits / 8)) uint8, packed like codes; None for the middle of the range.
        bits: 4 or 8.
    """
    middle: Tensor | int = 1 << (bits - 1)
    if zeros is not None:
        middle = _unpack(zeros, bits)[:, : scales.shape[1], None].to(scales.dtype)
    return ((_unpack(codes, bits).to(scales.dtype) - middle) * scales[..., None]).flatten(1)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    return packed if bits == 8 else torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def dequant_gemv(
    inputs: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, bias: Tensor | None = None
) -> Tensor:
    """Few rows of activations times a matrix of codes: (rows, inputs) to (rows, outputs). See `dequantise`."""
    out = inputs @ dequantise(codes, scales, zeros, bits).to(inputs.dtype).T
    return out if bias is None else out + bias

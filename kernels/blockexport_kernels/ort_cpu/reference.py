"""What each operator computes, written to be read. The scalar path in src/scalar.cc is the same arithmetic in fp32.

Weights are those of com.microsoft::MatMulNBits. `k` columns lie in `blocks = ceil(k / block_size)` blocks:

    codes   (n, blocks, block_size * bits / 8) uint8, the even of two 4-bit codes in the low half
    scales  (n, blocks) fp32
    zeros   (n, ceil(blocks * bits / 8)) uint8, packed like codes, or None: 8 (4 bits), 128 (8 bits)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Quantised:
    """A matrix (n, k) of codes."""

    codes: Codes
    scales: Floats
    zeros: Codes | None
    k: int
    bits: int
    block_size: int

    @property
    def num_blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.k // self.block_size)


def unpack(packed: Codes, bits: int, count: int) -> NDArray[np.int64]:
    """The first `count` codes of each row of packed bytes: (n, bytes) to (n, count)."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return packed[:, :count].astype(np.int64)


def centred(w: Quantised) -> NDArray[np.int64]:
    """Codes minus zero points, (n, blocks, block_size); the last block is filled up with what lies there."""
    rows = len(w.codes)
    codes = unpack(w.codes.reshape(rows, -1), w.bits, w.num_blocks * w.block_size)
    if w.zeros is None:
        zeros = np.full((rows, w.num_blocks), 8 if w.bits == 4 else 128)
    else:
        zeros = unpack(w.zeros.reshape(rows, -1), w.bits, w.num_blocks)
    out: NDArray[np.int64] = codes.reshape(rows, w.num_blocks, w.block_size) - zeros[:, :, None]
    return out


def dequantise(w: Quantised) -> NDArray[np.float64]:
    """The matrix that the codes stand for, (n, k) in fp64."""
    scales = w.scales.reshape(len(w.codes), w.num_blocks, 1).astype(np.float64)
    return (centred(w) * scales).reshape(len(w.codes), -1)[:, : w.k]


def quantise_activations(a: Floats, block_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each block of a row to 8 bits: codes (rows, blocks, block_size), scales (rows, blocks).

    scale = max|a| / 127, code = a * (127 / max|a|) to the nearest, ties to even; in fp32, so that codes are exact.
    """
    rows, k = a.shape
    blocks = -(-k // block_size)
    padded = np.zeros((rows, blocks * block_size), np.float32)
    padded[:, :k] = a
    by_block = padded.reshape(rows, blocks, block_size)
    largest = np.abs(by_block).max(axis=2)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(by_block * inverse[:, :, None]).astype(np.int64), largest / np.float32(127)


def matmul_nbits(a: Floats, w: Quantised, bias: Floats | None = None) -> NDArray[np.float64]:
    """`MatMulNBits`: (rows, k) times (n, k)^T. Sums over a block are integers and exact, the rest is fp64."""
    codes, scales = quantise_activations(a, w.block_size)
    sums = np.einsum("rbi,nbi->rnb", codes, centred(w)).astype(np.float64)
    weight_scales = w.scales.reshape(1, len(w.codes), w.num_blocks).astype(np.float64)
    out: NDArray[np.float64] = (sums * scales[:, None, :] * weight_scales).sum(axis=2)
    return out if bias is None else out + bias


def matmul(a: Floats, w: Floats, bias: Floats | None = None) -> NDArray[np.float64]:
    """`MatMul`: (rows, k) times (n, k)^T in fp64; bf16 weights stand for what they are in fp32."""
    out = a.astype(np.float64) @ w.astype(np.float64).T
    return out if bias is None else out + bias


def rms_norm(a: Floats, weight: Floats, epsilon: float) -> NDArray[np.float64]:
    """What rows (rows, k) are before they are multiplied, with the attribute `rms_epsilon` (arXiv:1910.07467)."""
    wide = a.astype(np.float64)
    out: NDArray[np.float64] = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + epsilon) * weight
    return out


def gated(gate: Floats, up: Floats) -> Floats:
    """What products with the attribute `gated` become: silu(gate) * up."""
    return gate / (1.0 + np.exp(-gate)) * up


def gather_nbits(w: Quantised, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """`GatherNBits`: rows of the matrix, (*indices.shape, k)."""
    return dequantise(w)[indices]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Angles of the new tokens: cosines and sines, (batch, seq, half) each."""

    cos: Floats
    sin: Floats

    def __call__(self, heads: Floats) -> NDArray[np.float64]:
        """Rotate the first 2 * half components of heads (batch, seq, heads, head_dim) by halves."""
        half = self.cos.shape[-1]
        cos, sin = self.cos[:, :, None].astype(np.float64), self.sin[:, :, None].astype(np.float64)
        first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def cached_attention(
    query: Floats,
    key: Floats,
    value: Floats,
    past: tuple[Floats, Floats],
    first_slots: list[int],
    *,
    scale: float,
    window: int = -1,
    softcap: float = 0.0,
    rotary: Rotary | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """`CachedAttention`: append new keys and values to the cache and attend to it, causally.

    Args:
        query: (batch, seq, heads, head_dim).
        key: (batch, seq, kv_heads, head_dim), before the rotary embedding; `value` likewise.
        value: see `key`.
        past: keys and values, (batch, kv_heads, capacity, head_dim) each.
        first_slots: of each row, where its first new token goes.
        scale: of the scores.
        window: how many tokens a token sees, itself the last; 0 or less for all.
        softcap: scores become softcap * tanh(scores / softcap), if it is not 0.
        rotary: of queries and keys.

    Returns:
        What was attended (batch, seq, heads, head_dim), and the cache.
    """
    if rotary is not None:
        query, key = rotary(query), rotary(key)
    keys, values = (kept.astype(np.float64) for kept in past)
    seq, shared = query.shape[1], query.shape[2] // key.shape[2]
    out = np.zeros(query.shape)
    for row, first in enumerate(first_slots):
        keys[row, :, first : first + seq] = key[row].swapaxes(0, 1)
        values[row, :, first : first + seq] = value[row].swapaxes(0, 1)
        for token in range(seq):
            slot = first + token
            seen = slice(max(0, slot + 1 - window) if window > 0 else 0, slot + 1)
            for head in range(query.shape[2]):
                scores = keys[row, head // shared, seen] @ query[row, token, head].astype(np.float64) * scale
                scores = softcap * np.tanh(scores / softcap) if softcap else scores
                weights = np.exp(scores - scores.max())
                out[row, token, head] = weights / weights.sum() @ values[row, head // shared, seen]
    return out, keys, values


def experts_tokens(experts: NDArray[np.int64]) -> list[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
    """Of a choice (tokens, k): each expert that was chosen, the tokens that did, and at which of their k places."""
    found = []
    for expert in np.unique(experts):
        tokens, places = np.nonzero(experts == expert)
        found.append((int(expert), tokens, places))
    return found


def gated_experts(
    a: Floats, experts: NDArray[np.int64], weights: Floats, gate_up: Floats, down: Floats
) -> NDArray[np.float64]:
    """`GatedExperts`: of each token the weighted sum over its experts e of down_e . (silu(gate_e . a) * up_e . a).

    gate_up is (E, 2h, d), the even rows of each expert being its gate; down is (E, d, h).
    """
    out = np.zeros(a.shape)
    for expert, tokens, place in experts_tokens(experts):
        product = matmul(a[tokens], gate_up[expert])
        made = matmul(gated(product[:, 0::2], product[:, 1::2]), down[expert])
        np.add.at(out, tokens, made * weights[tokens, place][:, None])
    return out


def gated_experts_nbits(
    a: Floats, experts: NDArray[np.int64], weights: Floats, gate_up: list[Quantised], down: list[Quantised]
) -> NDArray[np.float64]:
    """`GatedExpertsNBits`: the same with a quantised matrix for each expert; both products quantise their inputs."""
    out = np.zeros(a.shape)
    for expert, tokens, place in experts_tokens(experts):
        product = matmul_nbits(a[tokens], gate_up[expert])
        hidden = gated(product[:, 0::2], product[:, 1::2]).astype(np.float32)
        made = matmul_nbits(hidden, down[expert])
        np.add.at(out, tokens, made * weights[tokens, place][:, None])
    return out

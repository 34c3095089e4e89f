"""Choosing the next token."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockexport.errors import RequestError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: draw among this many most likely tokens; 0 for all.
        top_p: draw among the fewest tokens that together have this probability (arXiv:1904.09751).
        seed: seed of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            msg = f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number"
            raise RequestError(msg)
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            msg = f"top_k is {self.top_k} and top_p {self.top_p}; top_k must not be negative and top_p lie in (0, 1]"
            raise RequestError(msg)


def choose(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> NDArray[np.int64]:
    """Next token of each row, (batch,), from logits (batch, vocab)."""
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(-1), np.int64)
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, axis=-1, kind="stable")
    ranked = np.take_along_axis(scaled, order, -1)
    if sampling.top_k:
        ranked[:, sampling.top_k :] = -np.inf
    weights = np.exp(ranked - ranked[:, :1])
    weights /= weights.sum(-1, keepdims=True)
    # A token stays while the more likely ones do not yet reach top_p, so at least one always does.
    weights[np.cumsum(weights, -1) - weights >= sampling.top_p] = 0.0
    cumulative = np.cumsum(weights, -1)
    draws = rng.random((len(logits), 1)) * cumulative[:, -1:]
    picked = (cumulative <= draws).sum(-1).clip(max=logits.shape[-1] - 1)
    tokens: NDArray[np.int64] = np.take_along_axis(order, picked[:, None], -1)[:, 0].astype(np.int64)
    return tokens

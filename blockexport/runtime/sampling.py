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
    return np.array([_draw(row, sampling, rng.random()) for row in logits], np.int64)


def _draw(logits: NDArray[np.float32], sampling: Sampling, share: float) -> int:
    """The token at a share, 0 to 1, of all the probability that tokens of one row (vocab,) may have."""
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    tokens = _most_likely(weights, sampling)
    cumulative = np.cumsum(weights[tokens])
    picked = np.searchsorted(cumulative, share * cumulative[-1], side="right")
    return int(tokens[min(picked, len(tokens) - 1)])


def _most_likely(weights: NDArray[np.float64], sampling: Sampling) -> NDArray[np.int64]:
    """Tokens that may be drawn, the likelier first if not all may; of equally likely ones the first by id."""
    vocab_size = len(weights)
    is_cut = 0 < sampling.top_k < vocab_size
    if not is_cut and sampling.top_p == 1:
        return np.arange(vocab_size)
    # Sorting a whole vocabulary takes longer than many a decode step, so what cannot stay is left out before.
    if is_cut:
        least = np.partition(weights, -sampling.top_k)[-sampling.top_k]
    else:
        # All tokens below this have less than 1 - top_p together, so the others reach top_p without them.
        least = (1 - sampling.top_p) * weights.sum() / vocab_size
    tokens = np.flatnonzero(weights >= least)
    tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
    if is_cut:
        tokens = tokens[: sampling.top_k]
    shares = weights[tokens] / (weights[tokens].sum() if is_cut else weights.sum())
    # A token stays while the more likely ones do not yet reach top_p, so at least one always does.
    kept: NDArray[np.int64] = tokens[np.cumsum(shares) - shares < sampling.top_p]
    return kept

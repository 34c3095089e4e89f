"""How many tokens an answer will have, learned from those that ended."""

from bisect import bisect_left
from collections import deque

_NUM_BINS = 32
_REFRESH = 32


class LengthPredictor:
    """Quantiles of the share of `max_new_tokens` that answers use, given how much of it is used already.

    Until enough answers have ended, an answer is taken to use all of it.

    Args:
        memory: answers remembered.
        quantile: which quantile `remaining` gives.
        least: answers needed before anything is predicted.
    """

    def __init__(self, memory: int = 512, quantile: float = 0.5, least: int = 32) -> None:
        self._shares: deque[float] = deque(maxlen=memory)
        self._quantile, self._least = quantile, least
        self._num_seen = 0
        self._table = [1.0] * (_NUM_BINS + 1)

    def observe(self, num_tokens: int, max_new_tokens: int) -> None:
        """Take in one answer that came to its own end."""
        self._shares.append(num_tokens / max_new_tokens)
        self._num_seen += 1
        if self._num_seen >= self._least and self._num_seen % _REFRESH == 0:
            self._refresh()

    def _refresh(self) -> None:
        ordered = sorted(self._shares)
        for index in range(_NUM_BINS + 1):
            first = bisect_left(ordered, index / _NUM_BINS)
            rest = ordered[first:]
            self._table[index] = rest[int(self._quantile * (len(rest) - 1))] if rest else 1.0

    def remaining(self, num_tokens: int, max_new_tokens: int) -> float:
        """Tokens still to come after `num_tokens`, at least one while there may be any."""
        share = self._table[_NUM_BINS * num_tokens // max_new_tokens]
        return max(1.0, share * max_new_tokens - num_tokens)

"""Prompt in, tokens out, one engine call a step."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blockexport.core.engine import BoundDecoder, StepInputs
from blockexport.runtime.kv_cache import KvCache
from blockexport.runtime.sampling import Sampling, choose


class DecodeLoop:
    """Generates for one batch; rows may have prompts of different lengths and stop at different tokens.

    Args:
        engine: the level, tied to `cache`.
        cache: empty, with room for prompts and new tokens.
        stops: ids that end a row.
        sampling: how tokens are drawn.
        clock: monotonic nanoseconds.
        on_token: called as (row, token) as soon as a token is there.
    """

    def __init__(
        self,
        engine: BoundDecoder,
        cache: KvCache,
        *,
        stops: frozenset[int],
        sampling: Sampling,
        clock: Callable[[], int],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._stops = stops
        self._sampling = sampling
        self._clock = clock
        self._on_token = on_token
        self.first_token_at = 0

    def run(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], max_new_tokens: int) -> list[list[int]]:
        """Continue prompts (batch, tokens), padded on the right, of `lengths` (batch,); new tokens of each row."""
        rng = np.random.default_rng(self._sampling.seed)
        rows: list[list[int]] = [[] for _ in tokens]
        running = np.ones(len(tokens), np.bool_)
        logits = self._engine.step(StepInputs.prompt(tokens, lengths))
        self._cache.lengths[:] = lengths
        # The last token is chosen and not fed back: N tokens cost N-1 decode steps.
        for remaining in reversed(range(max_new_tokens)):
            chosen = choose(logits[:, -1], self._sampling, rng)
            self.first_token_at = self.first_token_at or self._clock()
            self._collect(chosen, rows, running)
            if not running.any() or remaining == 0:
                break
            logits = self._engine.step(StepInputs.following(chosen[:, None], self._cache.lengths))
            self._cache.lengths += 1
        return rows

    def _collect(self, chosen: NDArray[np.int64], rows: list[list[int]], running: NDArray[np.bool_]) -> None:
        for row in np.flatnonzero(running):
            token = int(chosen[row])
            if token in self._stops:
                running[row] = False
                continue
            rows[row].append(token)
            if self._on_token is not None:
                self._on_token(int(row), token)

"""Memory and bindings for one size of batch, made once and handed from one request to the next."""

import numpy as np

from blockexport.core.engine import BoundDecoder, StepInputs
from blockexport.core.positions import NUM_AXES
from blockexport.runtime.engines import Engines


class Workspace:
    """A cache, the arrays of a decode step, and the levels tied to both.

    Args:
        engines: the levels.
        batch: rows of the batch.
        step_tokens: the cache is this large at first, and grows by as much at a time.

    Attributes:
        cache: keys and values.
        decode: inputs of a step of one token for each row, changed in place by whoever runs it.
    """

    def __init__(self, engines: Engines, batch: int, step_tokens: int) -> None:
        self._engines = engines
        self._step_tokens = step_tokens
        self._decoding: dict[str, BoundDecoder] = {}
        self._prompting: dict[str, BoundDecoder] = {}
        self.batch = batch
        self.cache = engines.new_cache(batch, self._rounded(step_tokens))
        self.decode = StepInputs(
            input_ids=np.zeros((batch, 1), np.int64),
            position_ids=np.zeros((batch, 1), np.int64),
            total_tokens=np.zeros((), np.int32),
            logits_index=np.zeros((batch, 1), np.int64),
            last_position=np.zeros(batch, np.int32),
            last_slots=self.cache.slots_by_block(),
            position_shifts=np.zeros((NUM_AXES, batch, 1), np.int64) if engines.spec.has_axes else None,
        )

    def decoding(self, level: str) -> BoundDecoder:
        """A level tied to the cache and to `decode`; the first time, it is opened and tied."""
        if level not in self._decoding:
            bound = self._engines.decoder(level).bind(self.cache.rows)
            bound.prepare(self.decode)
            self._decoding[level] = bound
        return self._decoding[level]

    def prompting(self, level: str, row: int | None = None) -> BoundDecoder:
        """A level tied to the cache, or to one row of it, for inputs of any length."""
        if row is not None and self.batch > 1:
            return self._engines.decoder(level).bind(self.cache.row(row))
        if level not in self._prompting:
            self._prompting[level] = self._engines.decoder(level).bind(self.cache.rows)
        return self._prompting[level]

    def unbind(self, *levels: str) -> None:
        """Let go of levels."""
        for level in levels:
            self._decoding.pop(level, None)
            self._prompting.pop(level, None)

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in each row.

        Raises:
            RequestError: there is not enough memory; everything is as it was.
        """
        if tokens > self.cache.capacity_tokens:
            self.cache.grow(self._rounded(tokens))
            self.unbind(*self._decoding, *self._prompting)

    def _rounded(self, tokens: int) -> int:
        steps = -(-tokens // self._step_tokens)
        return min(steps * self._step_tokens, self._engines.spec.context_tokens or steps * self._step_tokens)

"""The cache of all requests: one row each, and the levels tied to any run of neighbouring rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockexport.core.engine import BoundDecoder, KvRow, StepInputs, empty_rows
from blockexport.core.model import ModelSpec
from blockexport.core.positions import NUM_AXES
from blockexport.runtime.engines import Engines

_MOST_SPANS = 32
"""Spans whose bindings are kept: far more than a settled batch uses."""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Neighbouring rows as a batch of their own: the arrays of a decode step, and the levels tied to them."""

    rows: dict[int, KvRow]
    inputs: StepInputs
    bound: dict[int, BoundDecoder]


class CacheRows:
    """Keys and values of up to `num_rows` requests, in place for every step and every level.

    A step runs neighbouring rows. Requests that share one and are not neighbours are moved together once, by exchanging
    rows, and stay so.

    Args:
        engines: the levels.
        num_rows: most requests that hold anything at a time.
        step_tokens: each row holds so many tokens at first, and grows by as many at a time.
    """

    def __init__(self, engines: Engines, num_rows: int, step_tokens: int) -> None:
        self._engines, self._step_tokens = engines, step_tokens
        self._layout = engines.layout(engines.names[0])
        self.num_rows = num_rows
        self.capacity_tokens = 0
        self._rows: dict[int, KvRow] = {}
        self._spans: dict[tuple[int, int], Span] = {}
        self._prompting: dict[tuple[int, int], BoundDecoder] = {}

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in each row; what they hold moves along.

        Raises:
            RequestError: there is not enough memory; everything is as it was.
        """
        if tokens <= self.capacity_tokens:
            return
        capacity = -(-tokens // self._step_tokens) * self._step_tokens
        capacity = min(capacity, self._engines.spec.context_tokens or capacity)
        # Pages that no token was written to take no memory, so rows in waiting cost nothing.
        grown = empty_rows(self._layout, self.num_rows, capacity, np.dtype(np.float32))
        for block, row in self._rows.items():
            for old, new in zip(row, grown[block], strict=True):
                new[:, :, : self.capacity_tokens] = old
        self._rows, self.capacity_tokens = grown, capacity
        self._spans.clear()
        self._prompting.clear()

    def exchange(self, one: int, other: int, num_tokens: int) -> None:
        """Let two rows change places, as far as either is filled."""
        for keys_and_values in self._rows.values():
            for array in keys_and_values:
                kept = array[one, :, :num_tokens].copy()
                array[one, :, :num_tokens] = array[other, :, :num_tokens]
                array[other, :, :num_tokens] = kept

    def prompting(self, level: int, row: int) -> BoundDecoder:
        """A level tied to one row, for any number of tokens."""
        if (level, row) not in self._prompting:
            self._prompting[level, row] = self._bind(level, self._slice(row, row + 1))
        return self._prompting[level, row]

    def decoding(self, level: int, first: int, end: int) -> tuple[StepInputs, BoundDecoder]:
        """A level tied to rows from `first` up to `end`, and the arrays of a step, to be set before it."""
        span = self._spans.get((first, end))
        if span is None:
            if len(self._spans) >= _MOST_SPANS:
                self._spans.pop(next(iter(self._spans)))
            span = Span(self._slice(first, end), _step_arrays(end - first, self._engines.spec), {})
            self._spans[first, end] = span
        if level not in span.bound:
            span.bound[level] = self._bind(level, span.rows)
            span.bound[level].prepare(span.inputs)
        return span.inputs, span.bound[level]

    def forget(self, level: int) -> None:
        """Let go of what is tied to a level, which is tied anew when it is next used."""
        for span in self._spans.values():
            span.bound.pop(level, None)
        self._prompting = {key: bound for key, bound in self._prompting.items() if key[0] != level}

    def _slice(self, first: int, end: int) -> dict[int, KvRow]:
        return {block: (keys[first:end], values[first:end]) for block, (keys, values) in self._rows.items()}

    def _bind(self, level: int, rows: dict[int, KvRow]) -> BoundDecoder:
        return self._engines.decoder(self._engines.names[level]).bind(rows)


def _step_arrays(num_rows: int, spec: ModelSpec) -> StepInputs:
    def column() -> NDArray[np.int64]:
        return np.zeros((num_rows, 1), np.int64)

    return StepInputs(
        input_ids=column(),
        position_ids=column(),
        total_tokens=np.zeros((), np.int32),
        logits_index=column(),
        last_position=np.zeros(num_rows, np.int32),
        position_shifts=np.zeros((NUM_AXES, num_rows, 1), np.int64) if spec.has_axes else None,
    )

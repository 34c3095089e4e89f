"""What a backend's engine of one level looks like to everything above it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blockexport.core.pictures import ImageTokens
from blockexport.core.positions import PositionShifts
from blockexport.core.signature import last_slot_name
from blockexport.errors import RequestError

_TAKEN_BY_ALL = ("input_ids", "position_ids", "total_tokens", "logits_index")
KvRow = tuple[NDArray[np.generic], NDArray[np.generic]]
"""Keys and values of one block, each (batch, kv_heads, capacity, head_dim), updated in place."""


@dataclass(frozen=True, slots=True, eq=False)
class StepInputs:
    """One call of a decoder: a prompt, a chunk of one, or one token for each row.

    Rows may differ in length. A first prompt is padded on the right; in a later call every row has the same number
    of new tokens, at its own position. An engine that is given the same object again has nothing to prepare: it reads
    the arrays as they are by then.

    Attributes:
        input_ids: (batch, seq) int64.
        position_ids: (batch, seq) int64, position of each token in its row.
        total_tokens: () int32, tokens of the longest row after the call.
        logits_index: (batch, kept_positions) int64, columns of `input_ids` whose logits are wanted.
        last_position: (batch,) int32, position of each row's last real new token; also its slot in the cache.
        last_slots: by original block, what is (batch,) int32 to take instead for blocks that lack earlier tokens.
        image_tokens: what joins these tokens, for a decoder that reads pictures; None for nothing.
        position_shifts: (3, batch, seq) int64, how far positions in time, row and column are from `position_ids`, for a
            decoder that has these; None for not at all.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    total_tokens: NDArray[np.int32]
    logits_index: NDArray[np.int64]
    last_position: NDArray[np.int32]
    last_slots: Mapping[int, NDArray[np.int32]] = field(default_factory=dict)
    image_tokens: ImageTokens | None = None
    position_shifts: NDArray[np.int64] | None = None

    def by_name(self, blocks: Iterable[int]) -> dict[str, NDArray[np.generic]]:
        """What every decoder graph over these blocks takes besides cache rows, by the names of its inputs."""
        slots = {last_slot_name(block): self.last_slots.get(block, self.last_position) for block in blocks}
        return {name: getattr(self, name) for name in _TAKEN_BY_ALL} | slots

    def require_room(self, capacity: int) -> None:
        """Make sure that cache rows of so many tokens can hold the new ones.

        Raises:
            RequestError: they cannot.
        """
        tokens = max(self.input_ids.shape[1], int(self.total_tokens))
        if tokens > capacity:
            msg = f"{tokens} tokens do not fit a cache of {capacity}; allocate more or ask for fewer"
            raise RequestError(msg)

    @classmethod
    def prompt(
        cls,
        input_ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        all_logits: bool = False,
        image_tokens: ImageTokens | None = None,
        shifts: PositionShifts | None = None,
    ) -> "StepInputs":
        """A first prompt (batch, seq), padded on the right to the longest row.

        Args:
            input_ids: (batch, seq).
            lengths: (batch,), real tokens of each row.
            all_logits: whether logits of every position are wanted, or of each row's last token only.
            image_tokens: what joins the prompt.
            shifts: what these do to positions.
        """
        batch, seq = input_ids.shape
        columns = np.arange(seq, dtype=np.int64)
        return cls(
            input_ids=np.ascontiguousarray(input_ids, np.int64),
            position_ids=np.tile(columns, (batch, 1)),
            total_tokens=np.array(lengths.max(), np.int32),
            logits_index=np.tile(columns, (batch, 1)) if all_logits else (lengths - 1)[:, None].astype(np.int64),
            last_position=(lengths - 1).astype(np.int32),
            image_tokens=image_tokens,
            position_shifts=None if shifts is None else shifts.columns(0, seq),
        )

    @classmethod
    def following(
        cls,
        input_ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        image_tokens: ImageTokens | None = None,
        position_shifts: NDArray[np.int64] | None = None,
    ) -> "StepInputs":
        """New tokens (batch, seq) behind `lengths` (batch,) cached ones; logits of the last."""
        batch, seq = input_ids.shape
        positions = lengths[:, None].astype(np.int64) + np.arange(seq, dtype=np.int64)
        return cls(
            input_ids=np.ascontiguousarray(input_ids, np.int64),
            position_ids=positions,
            total_tokens=np.array(lengths.max() + seq, np.int32),
            logits_index=np.full((batch, 1), seq - 1, np.int64),
            last_position=positions[:, -1].astype(np.int32),
            image_tokens=image_tokens,
            position_shifts=position_shifts,
        )


class BoundDecoder(Protocol):
    """A decoder level tied to cache rows."""

    def prepare(self, inputs: StepInputs) -> None:
        """Tie the level to arrays before their first step."""

    def step(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Run once, writing new keys and values into the rows; logits (batch, kept_positions, vocab).

        Given the same object again, the same array is returned with new contents.
        """


class DecoderRunner(Protocol):
    """An opened decoder level."""

    def bind(self, rows: Mapping[int, KvRow]) -> BoundDecoder:
        """Tie the level to cache rows by original block; rows of skipped blocks are not touched."""

    def interrupt(self) -> None:
        """End the call in progress, from another thread, where the backend can."""

    def rearm(self) -> None:
        """Let calls run again."""


class SinglePassRunner(Protocol):
    """An opened encoder or vision level."""

    def forward(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Batch inputs to the model's output."""


class LevelOpener(Protocol):
    """Opens the files of one backend's levels; `kind` says in reports what runs them."""

    kind: str

    def decoder(self, path: Path) -> DecoderRunner:
        """Open a decoder level."""

    def single_pass(self, path: Path) -> SinglePassRunner:
        """Open an encoder or vision level."""


def empty_rows(
    layout: Mapping[int, tuple[int, int]], batch: int, capacity: int, dtype: np.dtype[np.generic]
) -> dict[int, KvRow]:
    """Fresh cache rows.

    Args:
        layout: per original block, (kv_heads, head_dim).
        batch: rows of the batch.
        capacity: tokens each row can hold.
        dtype: what keys and values are stored in.

    Raises:
        RequestError: there is not enough memory.
    """
    shapes = {block: (batch, heads, capacity, dim) for block, (heads, dim) in layout.items()}
    try:
        return {block: (np.zeros(shape, dtype), np.zeros(shape, dtype)) for block, shape in shapes.items()}
    except MemoryError as error:
        megabytes = sum(2 * math.prod(shape) for shape in shapes.values()) * dtype.itemsize / 1e6
        msg = (
            f"no memory for a cache of {batch} x {capacity} tokens ({megabytes:.0f} MB); "
            "ask for fewer rows or tokens, or free memory"
        )
        raise RequestError(msg) from error

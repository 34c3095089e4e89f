"""One cache for all levels: keys and values of each original block, and how far each block is filled."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from blockexport.core.engine import KvRow, empty_rows
from blockexport.errors import RequestError

_NO_HOLE = np.iinfo(np.int32).max


class KvCache:
    """Keys and values of one batch, updated in place by the engines.

    Levels are nested: whenever one runs, the blocks of all shallower ones run too. Blocks that the same levels keep
    are thus always filled alike, and are counted together as a *rung*: rung 0 is kept by the deepest level only, the
    last rung by all. A level runs its own rung and all later ones, of which its own is filled least. So the watermark
    of a level is that of its rung, and going down finds everything in place.

    Going up finds a hole: tokens of which the rung has no keys and values. It is filled (`rewind`) or accepted
    (`accept_holes`). Tokens then lie in the next free slots, and attention passes over the hole: keys are stored with
    their position turned into them, so any slot will do.

    Args:
        layout: per block, (kv_heads, head_dim).
        rungs: per block, its rung.
        batch: rows of the batch.
        capacity_tokens: tokens each row can hold.

    Attributes:
        rows: keys and values by block, (batch, kv_heads, capacity, head_dim) each.
        last_slots: (rungs, batch) int32, slot of the last token of each row in the blocks of a rung. Engines are
            bound to it, so it is changed in place and never replaced.
    """

    def __init__(
        self, layout: Mapping[int, tuple[int, int]], rungs: Mapping[int, int], batch: int, capacity_tokens: int
    ) -> None:
        self.rows: dict[int, KvRow] = empty_rows(layout, batch, capacity_tokens, np.dtype(np.float32))
        self.capacity_tokens = capacity_tokens
        shape = (max(rungs.values()) + 1, batch)
        self.last_slots: NDArray[np.int32] = np.full(shape, -1, np.int32)
        self._first_hole: NDArray[np.int32] = np.full(shape, _NO_HOLE, np.int32)
        self._layout = layout
        self._rungs = rungs
        self._entered: int | None = None

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """Tokens of each row so far, (batch,)."""
        tokens: NDArray[np.int32] = self.last_slots[-1] + 1
        return tokens

    def valid_tokens(self, rung: int) -> NDArray[np.int32]:
        """Leading tokens of each row that no block of the rung lacks, (batch,): its watermark."""
        valid: NDArray[np.int32] = np.minimum(self.last_slots[rung] + 1, self._first_hole[rung])
        return valid

    def slots_by_block(self) -> dict[int, NDArray[np.int32]]:
        """The row of `last_slots` that holds for each block, (batch,) each."""
        return {block: self.last_slots[rung] for block, rung in self._rungs.items()}

    def row(self, index: int) -> dict[int, KvRow]:
        """The memory of one row of the batch, as a batch of its own."""
        only = slice(index, index + 1)
        return {block: (keys[only], values[only]) for block, (keys, values) in self.rows.items()}

    def clear(self) -> None:
        """Forget all tokens; what lies in memory is overwritten before it is read."""
        self.last_slots.fill(-1)
        self._first_hole.fill(_NO_HOLE)
        self._entered = None

    def enter(self, rung: int) -> bool:
        """Let a level go on from here; False if its blocks lack tokens, and then it may not."""
        is_whole = bool((self.valid_tokens(rung) == self.num_tokens).all())
        self._entered = rung if is_whole else None
        return is_whole

    def accept_holes(self, rung: int) -> None:
        """Let a level go on although its blocks lack tokens, passing over them."""
        valid = np.minimum(self.last_slots + 1, self._first_hole)[rung:]
        self._first_hole[rung:] = np.where(valid < self.num_tokens, valid, _NO_HOLE)
        self._entered = rung

    def rewind(self, rung: int) -> NDArray[np.int32]:
        """Go back to where a level has everything; the tokens of each row that are left, (batch,)."""
        valid = self.valid_tokens(rung)
        self.last_slots[rung:] = valid - 1
        self._first_hole[rung:] = _NO_HOLE
        self._entered = rung
        return valid

    def extend(self, rung: int, tokens: int | NDArray[np.integer]) -> None:
        """Count tokens that a level adds to each row; negative to take them back.

        Raises:
            RequestError: the level's blocks lack earlier tokens.
        """
        if rung != self._entered:
            have, all_tokens = self.valid_tokens(rung).min(), self.num_tokens.max()
            msg = f"the level has {have} of {all_tokens} tokens; fill the hole or accept it before the level runs"
            raise RequestError(msg)
        self.last_slots[rung:] += tokens

    def grow(self, capacity_tokens: int) -> None:
        """Move to larger memory, to which engines must be tied anew; after an error everything is as it was.

        Raises:
            RequestError: there is not enough memory.
        """
        batch, filled = self.last_slots.shape[1], int(self.last_slots.max()) + 1
        grown = empty_rows(self._layout, batch, capacity_tokens, np.dtype(np.float32))
        for block, row in self.rows.items():
            for old, new in zip(row, grown[block], strict=True):
                new[:, :, :filled] = old[:, :, :filled]
        self.rows, self.capacity_tokens = grown, capacity_tokens

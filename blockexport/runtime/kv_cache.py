"""One cache for all levels: a row for each original block, bound by whichever level runs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from blockexport.core.engine import KvRow, empty_rows


class KvCache:
    """Keys and values of one batch, updated in place by the engines.

    A deeper level fills every row that a shallower one needs, since masks are nested; so going down between two
    tokens costs nothing and stays exact.

    Args:
        layout: per block, (kv_heads, head_dim).
        batch: rows of the batch.
        capacity_tokens: tokens each row can hold.
    """

    def __init__(self, layout: Mapping[int, tuple[int, int]], batch: int, capacity_tokens: int) -> None:
        self.rows: dict[int, KvRow] = empty_rows(layout, batch, capacity_tokens, np.dtype(np.float32))
        self.capacity_tokens = capacity_tokens
        self.lengths: NDArray[np.int64] = np.zeros(batch, np.int64)

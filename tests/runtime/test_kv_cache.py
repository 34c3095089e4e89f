"""Watermarks, against lists of what lies in each slot of each block."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.errors import RequestError
from blockexport.runtime.kv_cache import KvCache

# Block 1 is kept by the deepest level only, blocks 0 and 3 by the two deepest, block 2 by all.
RUNGS = {0: 1, 1: 0, 2: 2, 3: 1}
NUM_RUNGS = 3
LAYOUT = {0: (1, 2), 1: (2, 2), 2: (1, 4), 3: (1, 2)}


def cache_of(batch: int = 1, capacity_tokens: int = 8) -> KvCache:
    return KvCache(LAYOUT, RUNGS, batch, capacity_tokens)


class Slots:
    """The positions of the tokens in the slots of each block, row by row."""

    def __init__(self, batch: int) -> None:
        self.lengths = [0] * batch
        self.slots: dict[int, list[list[int]]] = {block: [[] for _ in range(batch)] for block in RUNGS}

    def kept(self, level: int) -> list[int]:
        return [block for block, rung in RUNGS.items() if rung >= level]

    def valid(self, block: int, row: int) -> int:
        slots = self.slots[block][row]
        return next((i for i, position in enumerate(slots) if position != i), len(slots))

    def watermark(self, level: int) -> list[int]:
        return [min(self.valid(block, row) for block in self.kept(level)) for row in range(len(self.lengths))]

    def run(self, level: int, tokens: list[int]) -> None:
        for row, (length, count) in enumerate(zip(self.lengths, tokens, strict=True)):
            for block in self.kept(level):
                self.slots[block][row] += range(length, length + count)
            self.lengths[row] += count

    def fill(self, level: int) -> None:
        for row, begin in enumerate(self.watermark(level)):
            for block in self.kept(level):
                self.slots[block][row][begin:] = range(begin, self.lengths[row])


levels = st.integers(0, NUM_RUNGS - 1)
spans = st.lists(st.tuples(levels, st.booleans(), st.integers(0, 4)), max_size=12)


@given(prompt=st.lists(st.integers(1, 5), min_size=1, max_size=3), first=levels, spans=spans)
def test_watermarks_say_what_lies_in_the_slots(prompt: list[int], first: int, spans: list[tuple]) -> None:
    cache, model = cache_of(len(prompt)), Slots(len(prompt))
    assert cache.enter(first)
    cache.extend(first, np.array(prompt))
    model.run(first, prompt)
    for level, accepts_holes, count in spans:
        is_whole = cache.enter(level)
        assert is_whole == (model.watermark(level) == model.lengths)
        if not is_whole:
            with pytest.raises(RequestError, match="fill the hole or accept it"):
                cache.extend(level, 1)
            if accepts_holes:
                cache.accept_holes(level)
            else:
                lengths = cache.num_tokens
                begin = cache.rewind(level)
                assert begin.tolist() == model.watermark(level)
                cache.extend(level, lengths - begin)
                model.fill(level)
        for _ in range(count):
            cache.extend(level, 1)
            model.run(level, [1] * len(prompt))
        assert cache.num_tokens.tolist() == model.lengths
        valid = [cache.valid_tokens(rung) for rung in range(NUM_RUNGS)]
        assert [v.tolist() for v in valid] == [model.watermark(rung) for rung in range(NUM_RUNGS)]
        assert all((shallower >= deeper).all() for deeper, shallower in pairwise(valid))
        for block, slots in cache.slots_by_block().items():
            assert slots.tolist() == [len(row) - 1 for row in model.slots[block]]


def test_another_level_must_be_entered_first() -> None:
    cache = cache_of()
    with pytest.raises(RequestError, match="the level has 0 of 0 tokens"):
        cache.extend(0, 1)
    cache.enter(2)
    cache.extend(2, 3)
    with pytest.raises(RequestError, match="the level has 0 of 3 tokens"):
        cache.extend(0, 1)
    assert cache.num_tokens.tolist() == [3]


def test_clearing_forgets_tokens_holes_and_who_was_let_in() -> None:
    cache = cache_of(2)
    cache.enter(2)
    cache.extend(2, np.array([3, 1]))
    cache.accept_holes(0)
    cache.extend(0, 1)
    assert cache.valid_tokens(0).tolist() == [0, 0]
    cache.clear()
    assert (cache.last_slots == -1).all()
    with pytest.raises(RequestError):
        cache.extend(0, 1)
    assert cache.enter(0)
    cache.extend(0, 4)
    assert cache.valid_tokens(0).tolist() == [4, 4]


def test_tokens_taken_back_are_as_never_added() -> None:
    cache = cache_of()
    cache.enter(1)
    cache.extend(1, 5)
    before = cache.last_slots.copy()
    cache.extend(1, 1)
    cache.extend(1, -1)
    assert (cache.last_slots == before).all()


def test_engines_see_slots_change_in_place() -> None:
    cache = cache_of(2)
    slots = cache.slots_by_block()
    for block, array in slots.items():
        assert np.shares_memory(array, cache.last_slots[RUNGS[block]])
        assert (array.shape, array.dtype, array.flags.c_contiguous) == ((2,), np.int32, True)
    cache.enter(1)
    cache.extend(1, np.array([2, 4]))
    assert [slots[block].tolist() for block in range(4)] == [[1, 3], [-1, -1], [1, 3], [1, 3]]
    cache.grow(16)
    assert np.shares_memory(slots[2], cache.last_slots)


def test_growing_keeps_what_was_written() -> None:
    cache = cache_of(2, 4)
    cache.enter(1)
    cache.extend(1, np.array([3, 2]))
    before = {}
    for block, row in cache.rows.items():
        for part, array in enumerate(row):
            array[...] = np.random.default_rng(2 * block + part).random(array.shape)
            before[block, part] = array[:, :, :3].copy()
    cache.grow(9)
    assert cache.capacity_tokens == 9
    for (block, part), content in before.items():
        heads, head_dim = LAYOUT[block]
        array = cache.rows[block][part]
        assert (array.shape, array.dtype) == ((2, heads, 9, head_dim), np.float32)
        assert np.array_equal(array[:, :, :3], content)


def test_without_memory_everything_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(1, 4)
    cache.enter(0)
    cache.extend(0, 3)
    rows, slots, made, zeros = cache.rows, cache.last_slots.copy(), [], np.zeros

    def run_out(*arguments: object) -> object:
        if len(made) == 3:
            raise MemoryError
        made.append(arguments)
        return zeros(*arguments)

    monkeypatch.setattr("blockexport.core.engine.np.zeros", run_out)
    with pytest.raises(RequestError, match="no memory for a cache of 1 x 1000000 tokens \\(96 MB\\)"):
        cache.grow(10**6)
    assert len(made) == 3
    assert (cache.rows, cache.capacity_tokens) == (rows, 4)
    assert (cache.last_slots == slots).all()


def test_a_row_is_the_same_memory() -> None:
    cache = cache_of(3)
    for block, (keys, values) in cache.row(1).items():
        for part, whole in zip((keys, values), cache.rows[block], strict=True):
            assert part.shape == (1, *whole.shape[1:])
            assert part.flags.c_contiguous
            part.fill(block + 1)
            assert (whole[1] == block + 1).all()
            assert (whole[[0, 2]] == 0).all()

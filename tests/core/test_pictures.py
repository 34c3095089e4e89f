"""Where a prompt may be parted whose tokens see one another in both directions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.pictures import chunk_end

MUTUAL = (7, 9)


@pytest.mark.parametrize(("end", "wanted"), [(1, 1), (2, 2), (3, 7), (4, 7), (6, 7), (7, 7), (8, 8)], ids=str)
def test_what_sees_one_another_comes_together(end: int, wanted: int) -> None:
    tokens = np.array([1, 2, 7, 3, 9, 4, 7, 5])
    assert chunk_end(tokens, end, MUTUAL) == wanted


@given(st.lists(st.integers(5, 10), min_size=1, max_size=12), st.integers(1, 5))
def test_chunks_part_nothing_that_belongs_together(tokens: list[int], size: int) -> None:
    prompt, ends = np.array(tokens), [0]
    while ends[-1] < len(tokens):
        ends.append(chunk_end(prompt, min(ends[-1] + size, len(tokens)), MUTUAL))
        assert ends[-2] < ends[-1] <= len(tokens)
    holding = [np.isin(prompt[begin:end], MUTUAL).any() for begin, end in itertools.pairwise(ends)]
    assert sum(holding) <= 1
    assert chunk_end(prompt, size, ()) == size

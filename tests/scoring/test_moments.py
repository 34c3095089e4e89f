"""Merging batches gives what one look at all samples gives."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.scoring.moments import Moments

values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


@given(st.lists(values, min_size=1, max_size=6), st.sampled_from([0.0, 1e6]))
def test_batches_merge_without_loss(batches, offset):
    moments = Moments()
    for batch in batches:
        moments.add(np.array(batch) + offset)
    samples = np.concatenate([np.array(batch) for batch in batches]) + offset
    assert moments.count == len(samples)
    assert moments.mean == pytest.approx(samples.mean(), rel=1e-12, abs=1e-9)
    expected = samples.std(ddof=1) / math.sqrt(len(samples)) if len(samples) > 1 else 0.0
    assert moments.stderr == pytest.approx(expected, rel=1e-6, abs=1e-6)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.core.rank import spearman

pairs = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=12)


@given(pairs)
def test_it_is_the_correlation_of_mean_ranks(values):
    """Rank by definition: how many are below, plus half of the others that are equal."""
    ranks = [
        [sum(other < own for other in side) + (side.count(own) - 1) / 2 for own in side]
        for side in zip(*values, strict=True)
    ]
    found = spearman(*zip(*values, strict=True))
    if any(len(set(side)) == 1 for side in ranks):
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-12)
        assert -1 - 1e-12 <= found <= 1 + 1e-12


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12, unique=True))
def test_only_order_counts(values):
    order = np.argsort(np.argsort(values))
    if np.diff(np.sort(values)).min() > 1e-9:
        assert spearman(values, order.tolist()) == pytest.approx(1)
        assert spearman(values, (-order).tolist()) == pytest.approx(-1)


def test_known_case():
    """By hand: rank differences 0, -1, 1, 0; 1 - 6 * 2 / (4 * 15)."""
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)


def test_rounding_breaks_no_tie():
    assert spearman([0.3, 0.1 + 0.2, 0.5], [1, 2, 3]) == spearman([0.3, 0.3, 0.5], [1, 2, 3])


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [2]), ([1, 1], [1, 2]), ([0, 0], [0, 0])])
def test_it_has_no_meaning_for_one_value_or_equal_ones(first, second):
    assert spearman(first, second) is None

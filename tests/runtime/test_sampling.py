"""Draws, against probabilities computed the long way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockexport.errors import RequestError
from blockexport.runtime.sampling import Sampling, _most_likely, choose

VOCAB_SIZE = 50
LOGITS = np.random.default_rng(0).normal(0, 2, (1, VOCAB_SIZE)).astype(np.float32)


def probabilities(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """By definition: scale, keep the `top_k` most likely, of these the fewest that reach `top_p`, renormalise."""
    weights = np.exp(logits.astype(np.float64) / sampling.temperature)
    order = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    order = order[: sampling.top_k or None]
    total, reached, kept = weights[order].sum(), 0.0, []
    for token in order:
        if reached < sampling.top_p:
            kept.append(token)
        reached += weights[token] / total
    result = np.zeros(len(logits))
    result[kept] = weights[kept] / weights[kept].sum()
    return result


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(2.0, top_k=5),
        Sampling(1.0, top_p=0.8),
        Sampling(1.5, top_k=20, top_p=0.6),
        Sampling(1.0, top_k=1),
        Sampling(1.0, top_p=1e-9),
        Sampling(1.0, top_k=10**6),
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(sampling: Sampling) -> None:
    expected, num_draws = probabilities(LOGITS[0], sampling), 20_000
    rng = np.random.default_rng(1)
    drawn = choose(np.repeat(LOGITS, num_draws, 0), sampling, rng)
    assert (drawn.dtype, drawn.shape) == (np.int64, (num_draws,))
    counts = np.bincount(drawn, minlength=VOCAB_SIZE)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    # Five standard deviations of a binomial count, and half a count for rounding.
    allowed = 5 * np.sqrt(num_draws * expected * (1 - expected)) + 0.5
    assert (np.abs(counts - num_draws * expected) <= allowed).all()


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30),
    top_k=st.integers(0, 32),
    top_p=st.floats(0.01, 1),
    temperature=st.floats(0.1, 10),
)
def test_leaving_tokens_out_early_leaves_out_no_token_that_could_be_drawn(
    logits: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p)
    array = np.array(logits, np.float32)
    scaled = array.astype(np.float64) / temperature
    kept = _most_likely(np.exp(scaled - scaled.max()), sampling).tolist()
    assert len(set(kept)) == len(kept)
    expected = set(np.flatnonzero(probabilities(array, sampling)))
    # Where a sum meets top_p to the last bit, rounding decides about one token more or less.
    assert len(expected ^ set(kept)) <= 1 or top_p == 1
    assert kept


def test_greedy_is_the_most_likely_and_draws_nothing() -> None:
    logits = np.random.default_rng(2).normal(size=(4, VOCAB_SIZE)).astype(np.float32)
    rng = np.random.default_rng(0)
    assert (choose(logits, Sampling(), rng) == logits.argmax(-1)).all()
    assert rng.random() == np.random.default_rng(0).random()


def test_ties_go_to_the_first() -> None:
    logits = np.zeros((1, 5), np.float32)
    assert choose(logits, Sampling(), np.random.default_rng(0)) == [0]
    assert _most_likely(np.ones(5), Sampling(1.0, top_k=2)).tolist() == [0, 1]


def test_the_same_seed_draws_the_same() -> None:
    logits = np.repeat(LOGITS, 30, 0)
    first, again, other = (choose(logits, Sampling(1.0), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_extreme_logits_overflow_nothing() -> None:
    logits = np.array([[1e38, -1e38, 1e38]], np.float32)
    drawn = choose(np.repeat(logits, 50, 0), Sampling(0.01), np.random.default_rng(0))
    assert set(drawn.tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Sampling(**options)

from hypothesis import given
from hypothesis import strategies as st

from blockexport.routing.frontier import frontier

WORTHS = st.lists(st.floats(0, 1), min_size=1, max_size=16).map(lambda v: tuple(sorted(v, reverse=True)))


@given(worth=WORTHS, price=st.floats(0, 0.5))
def test_no_level_is_better_at_a_price_at_which_anything_is_worth_serving(
    worth: tuple[float, ...], price: float
) -> None:
    depths = tuple(range(2 * len(worth), 0, -2))

    def gain(level: int) -> float:
        return worth[level] - price * depths[level]

    best = max(map(gain, range(len(worth))))
    chosen = frontier(depths, worth).at(price)
    if best > 0:
        assert gain(chosen) >= best - 1e-9


@given(worth=WORTHS, prices=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_higher_price_never_asks_for_a_deeper_level(worth: tuple[float, ...], prices: tuple[float, float]) -> None:
    found = frontier(tuple(range(len(worth), 0, -1)), worth)
    assert found.at(min(prices)) <= found.at(max(prices))


def test_free_time_asks_for_the_deepest_level() -> None:
    assert frontier((16, 12, 8, 4), (1.0, 0.8, 0.5, 0.1)).at(0.0) == 0

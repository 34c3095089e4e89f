"""Positions in time, row and column: what pictures do to those of their tokens and of everything behind."""

import numpy as np
import pytest

from blockexport.core.positions import PositionShifts
from blockexport.errors import RequestError

GRID = (2, 3)
PLACES = np.array([[[0, column] for column in range(begin, begin + 6)] for begin in (9, 1)] + [[[1, -1]] * 6])


def test_a_picture_is_as_long_as_its_longer_side() -> None:
    shifts = PositionShifts.of_places(PLACES, GRID, 2)
    positions = np.arange(18) + shifts.columns(0, 18)
    time, row, column = positions[:, 0].tolist()
    assert time == [0, *[1] * 6, 4, 5, *[6] * 6, 9, 10, 11]
    assert row == [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 6, 6, 7, 7, 7, 9, 10, 11]
    assert column == [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9, 10, 11]
    assert shifts.behind.tolist() == [-6, 0]
    assert (positions[:, 1] == np.arange(18)).all()


def test_parts_and_rows_say_the_same_as_the_whole() -> None:
    shifts = PositionShifts.of_places(PLACES, GRID, 2)
    whole = shifts.columns(0, 20)
    parts = [shifts.columns(begin, min(begin + 3, 20)) for begin in range(0, 20, 3)]
    assert (np.concatenate(parts, axis=2) == whole).all()
    for row in (0, 1):
        assert (shifts.columns(2, 19, row) == whole[:, row : row + 1, 2:19]).all()
    assert (shifts.behind_tokens(2) == whole[:, :, 18:]).all()
    assert shifts.columns(2, 19, 0).flags.c_contiguous


def test_text_alone_stays_where_it_is() -> None:
    shifts = PositionShifts.of_places(np.zeros((0, 6, 2), np.int64), GRID, 2)
    assert not shifts.columns(0, 5).any()
    assert shifts.columns(0, 5).shape == (3, 2, 5)


def test_a_picture_in_pieces_is_refused() -> None:
    places = PLACES[:1].copy()
    places[0, 3:, 1] += 1
    with pytest.raises(RequestError, match="side by side"):
        PositionShifts.of_places(places, GRID, 1)

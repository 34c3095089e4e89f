import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.errors import RequestError
from blockexport.processing import PictureGeometry, num_image_tokens
from blockexport.processing.layout import (
    DROPPED,
    PictureTokens,
    picture_tokens,
    select_tiling,
    token_indices,
    view_tokens,
)

PUBLISHED = PictureGeometry()
IDS = PictureTokens(start=100, end=101, patch=102, column=103)


@st.composite
def geometries(draw):
    """Any geometry of up to six tokens a side."""
    pooling = draw(st.integers(1, 3))
    left, right, window = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    patch = draw(st.sampled_from([2, 3, 14]))
    return PictureGeometry(
        crop_size=(left + right + window) * pooling * patch,
        patch_size=patch,
        margins=(left * pooling, right * pooling),
        pooling=pooling,
        max_crops=draw(st.integers(1, 13)),
    )


def tilings(geometry):
    most = geometry.max_crops
    return st.integers(1, most).flatmap(lambda i: st.tuples(st.just(i), st.integers(1, most // i)))


@pytest.mark.parametrize(
    ("size", "tiling"),
    [
        ((336, 336), (1, 1)),
        ((337, 337), (2, 2)),  # never reduced while there are crops to enlarge into
        ((560, 784), (2, 3)),
        ((784, 1008), (3, 4)),
        ((5000, 5000), (3, 3)),  # all are too small: the one that reduces least
        ((1008, 784), (4, 3)),
    ],
)
def test_tilings_of_known_sizes(size, tiling):
    assert select_tiling(*size, PUBLISHED) == tiling


@pytest.mark.parametrize("size", [(1, 1), (100, 900), (900, 100), (111, 5000), (50, 111)])
def test_a_picture_within_the_margins_gets_one_crop(size):
    """What is left of it without the margins is negative, and no scale of it is positive."""
    assert select_tiling(*size, PUBLISHED) == (1, 1)


def test_a_picture_exactly_as_high_as_the_margins_is_judged_by_its_width():
    assert select_tiling(112, 784, PUBLISHED) == (1, 3)


@pytest.mark.parametrize(("tiling", "num_patches"), [((1, 1), 288), ((2, 3), 704), ((3, 4), 1152)])
def test_patch_tokens_of_the_published_models(tiling, num_patches):
    rows, columns = view_tokens(tiling, PUBLISHED)
    assert 144 + rows * columns == num_patches
    assert (picture_tokens(tiling, PUBLISHED, IDS) == IDS.patch).sum() == num_patches
    assert (token_indices(tiling, PUBLISHED) >= 0).sum() == num_patches


def test_the_prompt_of_a_one_crop_picture_has_316_picture_tokens():
    assert num_image_tokens(336, 336, PUBLISHED) == 288 + 12 + 12 + 4


@given(st.data())
def test_every_patch_token_gets_exactly_one_patch(data):
    geometry = data.draw(geometries())
    tiling = data.draw(tilings(geometry))
    tokens, indices = picture_tokens(tiling, geometry, IDS), token_indices(tiling, geometry)
    assert indices.shape == (1 + tiling[0] * tiling[1], geometry.crop_tokens**2)
    assert set(indices[indices < 0]) <= {DROPPED}
    assert sorted(indices[indices >= 0]) == np.flatnonzero(tokens == IDS.patch).tolist()


@given(st.data())
def test_tokens_stand_in_the_order_of_the_whole_view(data):
    """Each crop knows where its patches lie in the enlarged view; read in token order, they run row by row."""
    geometry = data.draw(geometries())
    tiling = data.draw(tilings(geometry))
    step, side = geometry.window_patches // geometry.pooling, geometry.crop_tokens
    places = {}
    for number, indices in enumerate(token_indices(tiling, geometry)[1:]):
        for local, index in enumerate(indices):
            row = number // tiling[1] * step + local // side
            column = number % tiling[1] * step + local % side
            if index >= 0:
                places[index] = (row, column)
    rows, columns = view_tokens(tiling, geometry)
    assert [places[index] for index in sorted(places)] == [(r, c) for r in range(rows) for c in range(columns)]


def test_of_an_overlap_each_crop_drops_its_own_margin():
    geometry = PictureGeometry(crop_size=8, patch_size=1, margins=(2, 2), pooling=2, max_crops=2)
    _, first, second = token_indices((1, 2), geometry) != DROPPED
    assert first.reshape(4, 4)[0].tolist() == [True, True, True, False]
    assert second.reshape(4, 4)[0].tolist() == [False, True, True, True]


@given(st.data())
def test_the_number_of_tokens_is_known_from_the_size(data):
    geometry = data.draw(geometries())
    side = st.integers(1, 3000)
    height = data.draw(side)
    width = data.draw(side.filter(lambda w: max(w, height) <= min(w, height) * geometry.crop_size))
    tiling = select_tiling(height, width, geometry)
    assert num_image_tokens(width, height, geometry) == len(picture_tokens(tiling, geometry, IDS))


@pytest.mark.parametrize("size", [(1, 337), (337, 1), (0, 5)])
def test_a_picture_without_a_row_of_its_own_is_refused(size):
    with pytest.raises(RequestError, match=r"cannot be shown in 336 x 336; give one whose long side"):
        num_image_tokens(*size, PUBLISHED)

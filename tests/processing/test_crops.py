import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexport.errors import RequestError
from blockexport.processing import PictureGeometry
from blockexport.processing.crops import cut_picture, resize_with_padding
from blockexport.processing.layout import token_indices

PLAIN = PictureGeometry(
    crop_size=24, patch_size=4, margins=(2, 2), max_crops=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("size", "frame"), [((40, 60), (24, 24)), ((7, 5), (32, 24)), ((100, 31), (24, 48))])
def test_resizing_is_the_antialiased_bilinear_of_the_training_code(size, frame):
    torch = pytest.importorskip("torch")
    picture = noise(*size)
    pixels, inside = resize_with_padding(picture, *frame)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    inner = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255,
        inner.shape[:2],
        mode="bilinear",
        antialias=True,
    )[0]
    # Two passes in float32 over values up to 1, each a weighted mean: a few units in the last place.
    assert np.abs(inner - exact.permute(1, 2, 0).numpy()).max() < 8 * np.finfo(np.float32).eps


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_picture_keeps_its_proportions_and_lies_in_the_middle(height, width):
    pixels, inside = resize_with_padding(noise(height, width), 64, 64)
    rows, columns = inside.any(1), inside.any(0)
    # One less where float32 rounds just below: the published code does so too.
    assert max(rows.sum(), columns.sum()) in {63, 64}
    assert rows.sum() == pytest.approx(64 * height / max(height, width), abs=1)
    for side in (rows, columns):
        before, behind = side.argmax(), side[::-1].argmax()
        assert 0 <= behind - before <= 1
    assert (pixels[~inside] == 0).all()


def test_crops_show_the_enlarged_picture_where_their_tokens_stand():
    """At its native size nothing is resized, so each pixel can be found again by its value."""
    picture = np.zeros((24, 32, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(24)[:, None], np.arange(32)
    patches, _, tiling = cut_picture(picture, PLAIN)
    assert tiling == (1, 2)
    assert patches.shape == (3, 36, 48)
    values = (patches * 255).round().reshape(3, 6, 6, 4, 4, 3)
    places = {}
    for crop, indices in enumerate(token_indices(tiling, PLAIN)):
        for local, index in enumerate(indices):
            if crop > 0 and index >= 0:
                # The upper left pixel of the token's upper left patch.
                places[index] = tuple(values[crop, local // 3 * 2, local % 3 * 2, 0, 0, :2].astype(int).tolist())
    assert [places[index] for index in sorted(places)] == [(8 * r, 8 * c) for r in range(3) for c in range(4)]


def test_patches_are_row_by_row_with_colours_innermost():
    picture = noise(24, 24)
    patches, _, tiling = cut_picture(picture, PLAIN)
    assert tiling == (1, 1)
    for crop in patches:
        second = crop[1].reshape(4, 4, 3)
        np.testing.assert_array_equal(second, picture[:4, 4:8].astype(np.float32) / np.float32(255))


def test_shares_of_picture_are_one_row_off_as_trained():
    # 24 x 20 pixels at their own size: two columns of padding on either side.
    _, shares, tiling = cut_picture(noise(24, 20), PLAIN)
    assert tiling == (1, 1)
    assert shares.shape == (2, 36)
    assert shares[0].reshape(6, 6).tolist() == [[0.5, 1, 1, 1, 1, 0.5]] * 6
    assert (shares[1] == -1).all()


def test_padding_is_normalised_like_black():
    geometry = PictureGeometry(crop_size=24, patch_size=4, margins=(2, 2), max_crops=4)
    patches, shares, _ = cut_picture(np.full((24, 8, 3), 255, np.uint8), geometry)
    black = -np.array(geometry.mean, np.float32) / np.array(geometry.std, np.float32)
    empty = patches[1][shares[0] == 0].reshape(-1, 3)
    assert len(empty) > 0
    np.testing.assert_array_equal(empty, np.broadcast_to(black, empty.shape))


@pytest.mark.parametrize("size", [(1, 1), (1, 24), (100, 9000), (9000, 400)])
def test_extreme_sizes_are_cut_all_the_same(size):
    geometry = PictureGeometry(crop_size=96, patch_size=12, margins=(2, 2), max_crops=4)
    patches, shares, tiling = cut_picture(noise(*size), geometry)
    assert len(patches) == len(shares) == 1 + tiling[0] * tiling[1]
    assert np.isfinite(patches).all()


def test_a_picture_too_narrow_to_be_shown_is_refused():
    with pytest.raises(RequestError, match="25 x 1 pixels cannot be shown"):
        cut_picture(noise(1, 25), PLAIN)

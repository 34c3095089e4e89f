"""Where a picture's tokens go, from its size alone: "overlap-and-resize-c2" of Molmo (arXiv:2409.17146).

A picture is shown once as a whole, and once enlarged, cut into crops that overlap; of what two crops show, one is kept.
Each view is written row by row between a start and an end token, every row closed by a column token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockexport.errors import RequestError
from blockexport.processing.geometry import PictureGeometry

DROPPED = -100
"""Token index of a pooled patch that a neighbouring crop shows better."""


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """Ids of the tokens that frame a picture and stand for its patches."""

    start: int
    end: int
    patch: int
    column: int


def select_tiling(height: int, width: int, geometry: PictureGeometry) -> tuple[int, int]:
    """Rows and columns of crops that fit a picture best: the least enlargement, else the least reduction.

    A picture not larger than the margins has a negative size left and gets one crop, as the models were trained.
    """
    most = geometry.max_crops
    tilings = sorted(
        ((i, j) for i in range(1, most + 1) for j in range(1, most // i + 1)), key=lambda ij: (ij[0] * ij[1], ij[0])
    )
    # float32, because ties and roundings decide and must be those of the published code.
    inner = np.array([height - geometry.margin_pixels, width - geometry.margin_pixels], np.float32)
    with np.errstate(divide="ignore"):
        scales = (np.array(tilings, np.int32) * geometry.window_pixels).astype(np.float32) / inner
    scale = scales.min(axis=-1)
    if (scale < 1).all():
        return tilings[int(scale.argmax())]
    return tilings[int(np.where(scale < 1, np.inf, scale).argmin())]


def check_size(width: int, height: int, geometry: PictureGeometry) -> None:
    """Refuse a picture that has no row or no column of pixels left when it is shown as a whole.

    Raises:
        RequestError: one side is longer than the other by more than the side of a crop.
    """
    if min(width, height) < 1 or max(width, height) > min(width, height) * geometry.crop_size:
        msg = (
            f"a picture of {width} x {height} pixels cannot be shown in {geometry.crop_size} x {geometry.crop_size}; "
            f"give one whose long side is at most {geometry.crop_size} times the short one"
        )
        raise RequestError(msg)


def view_tokens(tiling: tuple[int, int], geometry: PictureGeometry) -> tuple[int, int]:
    """Rows and columns of patch tokens of the enlarged view."""
    rows, columns = ((n * geometry.window_patches + sum(geometry.margins)) // geometry.pooling for n in tiling)
    return rows, columns


def num_image_tokens(width: int, height: int, geometry: PictureGeometry) -> int:
    """Tokens that a picture of this size adds to a prompt, frame included.

    Raises:
        RequestError: no picture of this size can be processed.
    """
    check_size(width, height, geometry)
    side = geometry.crop_tokens
    rows, columns = view_tokens(select_tiling(height, width, geometry), geometry)
    return side * (side + 1) + rows * (columns + 1) + 4


def num_crops(width: int, height: int, geometry: PictureGeometry) -> int:
    """Crops that the vision side reads of a picture of this size, the one that shows all of it included.

    Raises:
        RequestError: no picture of this size can be processed.
    """
    check_size(width, height, geometry)
    rows, columns = select_tiling(height, width, geometry)
    return 1 + rows * columns


def picture_tokens(tiling: tuple[int, int], geometry: PictureGeometry, ids: PictureTokens) -> NDArray[np.int64]:
    """Ids that stand for a picture in the prompt, (tokens,): the whole first, the enlarged view second."""
    side = geometry.crop_tokens
    views = []
    for rows, columns in ((side, side), view_tokens(tiling, geometry)):
        row = [ids.patch] * columns + [ids.column]
        views += [ids.start, *row * rows, ids.end]
    return np.array(views, np.int64)


def token_indices(tiling: tuple[int, int], geometry: PictureGeometry) -> NDArray[np.int64]:
    """Where each pooled patch of each crop goes, (1 + crops, tokens), counted from the picture's first token.

    Patches of the enlarged view are in the order of the whole view, not of the crops; DROPPED marks an overlap.
    """
    side = geometry.crop_tokens
    local = np.arange(side)
    whole = 1 + local[:, None] * (side + 1) + local
    _, columns = view_tokens(tiling, geometry)
    step = geometry.window_patches // geometry.pooling
    first = whole[-1, -1] + 4  # behind column, end and start tokens
    crops = [whole.ravel()]
    for i in range(tiling[0]):
        for j in range(tiling[1]):
            inside = _kept(i, tiling[0], geometry)[:, None] & _kept(j, tiling[1], geometry)
            index = first + (i * step + local)[:, None] * (columns + 1) + (j * step + local)
            crops.append(np.where(inside, index, DROPPED).ravel())
    return np.stack(crops).astype(np.int64)


def _kept(position: int, count: int, geometry: PictureGeometry) -> NDArray[np.bool_]:
    """Which tokens along one side of the crop at `position` of `count` are kept, (tokens,)."""
    before, behind = (margin // geometry.pooling for margin in geometry.margins)
    tokens = np.arange(geometry.crop_tokens)
    first = 0 if position == 0 else before
    end = geometry.crop_tokens - (0 if position == count - 1 else behind)
    return np.asarray((tokens >= first) & (tokens < end))

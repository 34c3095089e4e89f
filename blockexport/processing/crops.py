"""Pixels to crops of patches, in the arithmetic that the models were trained with."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blockexport.processing.geometry import PictureGeometry
from blockexport.processing.layout import check_size, select_tiling

_Pixel = TypeVar("_Pixel", bound=np.generic)


def resize_with_padding(
    picture: NDArray[np.uint8], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Fit a picture into a frame, its proportions kept and centred on black.

    Returns:
        Pixels (height, width, 3) from 0 to 1, and where they are the picture's (height, width).
    """
    # float32, because the rounding down must be that of the published code.
    size = np.array(picture.shape[:2], np.float32)
    scale = (np.array([height, width], np.float32) / size).min()
    inner_height, inner_width = (size * scale).astype(int).tolist()
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    inner = np.s_[top : top + inner_height, left : left + inner_width]
    pixels = np.zeros((height, width, 3), np.float32)
    for channel in range(3):
        # One channel at a time: Pillow resizes floats in single-channel images only.
        plane = Image.fromarray(picture[:, :, channel].astype(np.float32) / np.float32(255))
        pixels[*inner, channel] = np.asarray(plane.resize((inner_width, inner_height), Image.Resampling.BILINEAR))
    inside = np.zeros((height, width), np.bool_)
    inside[inner] = True
    return pixels.clip(0, 1), inside


def cut_picture(
    picture: NDArray[np.uint8], geometry: PictureGeometry
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]:
    """Cut a picture (height, width, 3) into the whole, scaled to one crop, and the crops of the enlarged view.

    Returns:
        Patches (1 + crops, patches, pixels), normalised; which share of each patch is picture and not padding,
        (1 + crops, patches); rows and columns of crops. The shares of the crops come first and a row of -1 last,
        one off from the crops they are of: the published models were trained so.

    Raises:
        RequestError: the picture is too narrow to be shown.
    """
    height, width = picture.shape[:2]
    check_size(width, height, geometry)
    tiling = select_tiling(height, width, geometry)
    whole, _ = resize_with_padding(picture, geometry.crop_size, geometry.crop_size)
    enlarged, inside = resize_with_padding(
        picture, *(n * geometry.window_pixels + geometry.margin_pixels for n in tiling)
    )
    crops = np.stack([whole, *_windows(enlarged, tiling, geometry)])
    crops -= np.array(geometry.mean, np.float32)
    crops /= np.array(geometry.std, np.float32)
    covers = _patches(np.stack(_windows(inside[:, :, None], tiling, geometry)), geometry).astype(np.float32).mean(-1)
    shares = np.concatenate([covers, np.full_like(covers[:1], -1)])
    return _patches(crops, geometry), shares, tiling


def _windows(view: NDArray[_Pixel], tiling: tuple[int, int], geometry: PictureGeometry) -> list[NDArray[_Pixel]]:
    """Overlapping crops of a view (height, width, channels), row by row."""
    size, step = geometry.crop_size, geometry.window_pixels
    corners = ((i * step, j * step) for i in range(tiling[0]) for j in range(tiling[1]))
    return [view[y : y + size, x : x + size] for y, x in corners]


def _patches(crops: NDArray[_Pixel], geometry: PictureGeometry) -> NDArray[_Pixel]:
    """(crops, side, side, channels) to (crops, patches, pixels), both row by row, channels innermost."""
    side, patch = geometry.crop_patches, geometry.patch_size
    split = crops.reshape(len(crops), side, patch, side, patch, crops.shape[-1])
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(len(crops), side * side, -1)

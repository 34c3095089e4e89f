"""A picture from wherever it comes to (height, width, 3) bytes, or one clear error."""

import io
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from blockexport.errors import RequestError

MAX_PICTURE_PIXELS = 2**26
"""More is refused before anything is decoded: a file of kilobytes can claim gigabytes."""

# Decoders of pixels only: Pillow would hand PostScript and its like to another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_NO_KNOWN_WHITE = ("I", "F")

Picture: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]


def read_picture(picture: Picture, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Red, green and blue of a picture, (height, width, 3), turned as its EXIF data say.

    Transparency is dropped, as in the models' training; of an animation the first frame is taken.

    Args:
        picture: a path, the bytes of a file, a Pillow image, or an array (height, width, 3) or (height, width) uint8.
        max_pixels: most that are decoded; None for MAX_PICTURE_PIXELS.

    Raises:
        RequestError: the picture is missing, damaged, of an unknown kind, or has too many pixels.
    """
    max_pixels = MAX_PICTURE_PIXELS if max_pixels is None else max_pixels
    if isinstance(picture, np.ndarray):
        return _from_array(picture, max_pixels)
    if isinstance(picture, Image.Image):
        return _decode(picture, "the picture", max_pixels)
    name = "the picture" if isinstance(picture, bytes) else str(picture)
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=_FORMATS)
    except FileNotFoundError as error:
        msg = f"no picture at {name}; give the path of an existing file"
        raise RequestError(msg) from error
    except Image.DecompressionBombError as error:
        raise RequestError(_too_large(name, str(error), max_pixels)) from error
    except Exception as error:
        # Each decoder raises classes of its own.
        raise RequestError(_unreadable(name, error)) from error
    with image:
        return _decode(image, name, max_pixels)


def _from_array(picture: NDArray[np.uint8], max_pixels: int) -> NDArray[np.uint8]:
    if picture.dtype != np.uint8 or picture.shape[2:] not in {(), (3,)} or picture.ndim < 2 or picture.size == 0:
        msg = (
            f"a picture was given as {picture.dtype} array {picture.shape}; "
            "give uint8 of shape (height, width, 3) or (height, width)"
        )
        raise RequestError(msg)
    if picture.shape[0] * picture.shape[1] > max_pixels:
        raise RequestError(_too_large("the picture", f"{picture.shape[1]} x {picture.shape[0]}", max_pixels))
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


def _decode(image: Image.Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height > max_pixels:
        raise RequestError(_too_large(name, f"{width} x {height}", max_pixels))
    if image.mode in _NO_KNOWN_WHITE:
        msg = f"{name} has mode {image.mode}, which does not say what is white; convert it to 8 or 16 bits a channel"
        raise RequestError(msg)
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _SIXTEEN_BIT:
            # Pillow's own conversion cuts at 255 and leaves white.
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.array(upright.convert("RGB"))
    except Exception as error:
        # Each decoder raises classes of its own.
        raise RequestError(_unreadable(name, error)) from error


def _too_large(name: str, what: str, max_pixels: int) -> str:
    return f"{name} is too large ({what} pixels); give one of at most {max_pixels} pixels"


def _unreadable(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{name} cannot be read as a picture ({reason}); give a whole file of {', '.join(_FORMATS)}"

"""Pictures of a request: data in the request itself, bounded before anything is decoded."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from blockexport.errors import RequestError


def bytes_of_url(url: str) -> bytes:
    """What a `data:` URL holds.

    Raises:
        RequestError: it is another kind of URL, or its data are no base64.
    """
    head, comma, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        msg = f"image_url begins with {url[:40]!r}; send the picture itself, as data:image/png;base64,..."
        raise RequestError(msg)
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        msg = f"the data of image_url are no base64 ({error}); send the picture as data:image/png;base64,..."
        raise RequestError(msg) from error


def decode_pictures(urls: Sequence[str], max_pixels: int) -> list[Any]:
    """Pictures (height, width, 3) uint8.

    Raises:
        RequestError: a picture is damaged or has too many pixels.
    """
    if not urls:
        return []
    from blockexport.processing.pictures import read_picture  # noqa: PLC0415  (Pillow may be missing)

    return [read_picture(bytes_of_url(url), max_pixels=max_pixels) for url in urls]

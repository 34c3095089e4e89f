"""Pictures as callers have them to pictures as engines take them: moved with their prompts, everything checked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.core.model import ModelSpec, VisionSpec
from blockexport.core.pictures import Pictures
from blockexport.core.signature import IMAGE_MASKS
from blockexport.errors import RequestError

_NOWHERE = -1


def read_pictures(
    images: Any,
    image_masks: Any,
    image_input_idx: Any,
    *,
    tokens: NDArray[np.int64],
    real: NDArray[np.bool_],
    spec: ModelSpec,
) -> Pictures | None:
    """Check the pictures of a batch and find their places among its tokens.

    Args:
        images: (batch, crops, *image_shape), or (crops, *image_shape) for one prompt; crops of padding are -1.
        image_masks: (batch, crops, *mask_shape) likewise; for models that take them, and for these all picture if None.
        image_input_idx: (batch, crops, pooled) likewise, the column of `tokens` that each image token joins, below 0
            for none; None for models whose prompts have a token for it, in the order of the crops.
        tokens: (batch, tokens) as the caller has them.
        real: which of these are no padding, (batch, tokens).
        spec: the model.

    Returns:
        Crops with places among the real tokens of each row; None without pictures.

    Raises:
        RequestError: pictures that the model cannot see, places without pictures or outside the prompt, or arrays
            that do not fit together.
    """
    if images is None:
        if image_input_idx is not None and (np.asarray(image_input_idx) >= 0).any():
            msg = "image_input_idx places image tokens, but no picture is given; pass images"
            raise RequestError(msg)
        return None
    vision = spec.vision
    if vision is None:
        msg = f"pictures were given, but {spec.name} reads text only; leave pictures out"
        raise RequestError(msg)
    batch = {"images": _images(images, vision, len(tokens))}
    num_crops = batch["images"].shape[1]
    if vision.mask_shape:
        masks = np.ones((len(tokens), num_crops, *vision.mask_shape)) if image_masks is None else image_masks
        batch[IMAGE_MASKS] = _as_batch(IMAGE_MASKS, masks, vision.mask_shape, len(tokens), num_crops)
    if image_input_idx is None:
        places = _places_of_tokens(vision, tokens, real, num_crops)
    else:
        places = _as_batch("image_input_idx", image_input_idx, (vision.num_pooled,), len(tokens), num_crops)
    batch["image_input_idx"] = _among_real(places, real)
    return Pictures.of_batch(batch, vision.grid)


def _images(images: Any, vision: VisionSpec, num_rows: int) -> NDArray[Any]:
    try:
        return _as_batch("images", images, vision.image_shape, num_rows)
    except RequestError as error:
        if vision.grid is None:
            raise
        rows, columns = vision.grid
        msg = f"{error}; its engine reads pictures of {rows} x {columns} image tokens only, resize them to that"
        raise RequestError(msg) from error


def _as_batch(
    name: str, given: Any, shape: tuple[int, ...], num_rows: int, num_crops: int | None = None
) -> NDArray[Any]:
    array = np.asarray(given)
    if num_rows == 1 and array.ndim == len(shape) + 1:
        array = array[None]
    fits = array.ndim == len(shape) + 2 and array.shape[2:] == shape and len(array) == num_rows
    if not fits or num_crops not in {None, array.shape[1]}:
        wanted = ", ".join(map(str, (num_rows, "crops" if num_crops is None else num_crops, *shape)))
        msg = f"{name} is {np.shape(given)}; with {num_rows} prompts it must be ({wanted})"
        raise RequestError(msg)
    return array


def _places_of_tokens(
    vision: VisionSpec, tokens: NDArray[np.int64], real: NDArray[np.bool_], num_crops: int
) -> NDArray[np.int64]:
    """Columns of the tokens that stand for pictures, (batch, crops, pooled); rows may have fewer crops."""
    if vision.image_token is None:
        msg = "images were given without image_input_idx; give the column that each image token joins"
        raise RequestError(msg)
    places = np.full((len(tokens), num_crops, vision.num_pooled), _NOWHERE, np.int64)
    for row, flags in enumerate(real & (tokens == vision.image_token)):
        columns = np.flatnonzero(flags)
        if len(columns) % vision.num_pooled or len(columns) > num_crops * vision.num_pooled:
            msg = (
                f"row {row} has {len(columns)} tokens {vision.image_token} for {num_crops} crops; "
                f"put {vision.num_pooled} of them for each crop"
            )
            raise RequestError(msg)
        places[row].reshape(-1)[: len(columns)] = columns
    if num_crops and not (places >= 0).any():
        msg = (
            f"{num_crops} crops were given, but no prompt has a token {vision.image_token}; put them where they belong"
        )
        raise RequestError(msg)
    return places


def _among_real(places: NDArray[Any], real: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Columns counted without padding, (batch, crops, pooled)."""
    width = real.shape[1]
    if places.dtype.kind not in "iu" or (places >= width).any():
        what = places.max() if places.dtype.kind in "iu" else places.dtype
        msg = f"image_input_idx holds {what}; give columns of prompts of {width} tokens, or a number below 0"
        raise RequestError(msg)
    rows = np.arange(len(real))[:, None, None]
    columns = np.where(places >= 0, places, 0).astype(np.int64)
    if not (real[rows, columns] | (places < 0)).all():
        msg = "image_input_idx places an image token on padding; do not cut image tokens off"
        raise RequestError(msg)
    ranks = real.cumsum(1) - 1
    found: NDArray[np.int64] = np.where(places >= 0, ranks[rows, columns], _NOWHERE)
    return found

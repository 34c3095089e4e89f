"""Pictures with labels from a numpy archive."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blockexport.core.data import Sample
from blockexport.core.model import ModelSpec
from blockexport.errors import DataError


def read_npz(path: Path, spec: ModelSpec, _tokenizer_dir: Path | None) -> tuple[Sample, ...]:
    """`pixel_values` (images, channels, height, width), as the model takes them, and `labels` (images,)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            pixels = archive["pixel_values"].astype(np.float32)
            labels = archive["labels"].astype(np.int64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        msg = f"{path} must hold arrays `pixel_values` and `labels` ({error}); write it with numpy.savez"
        raise DataError(msg) from error
    if pixels.shape[1:] != spec.image_shape or len(pixels) != len(labels):
        msg = (
            f"{path} holds pictures {pixels.shape} and {len(labels)} labels; {spec.name} takes "
            f"(images, {', '.join(map(str, spec.image_shape))}) with one label each"
        )
        raise DataError(msg)
    return image_samples(pixels, labels)


def image_samples(pixels: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[Sample, ...]:
    """One sample for each picture."""
    return tuple(
        Sample({"pixel_values": picture}, np.asarray(label, np.int64), "accuracy", "images")
        for picture, label in zip(pixels, labels, strict=True)
    )

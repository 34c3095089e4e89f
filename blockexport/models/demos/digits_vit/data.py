"""scikit-learn's digits, split once and for all.

1,797 pictures of 8 x 8 pixels (https://archive.ics.uci.edu/dataset/80): 1,197 to train, 240 to select blocks and
levels on, 360 to state quality on. The split is stratified and does not depend on any other seed.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 66
_NUM_TEST = 360
_NUM_SELECTION = 240
_MAX_PIXEL = 16.0

Split = Literal["train", "selection", "test"]


def read_split(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read one split.

    Returns:
        Pixels (images, 1, 8, 8) scaled to [-1, 1] and labels (images,) from 0 to 9.
    """
    digits = load_digits()
    pixels = (digits.images / (_MAX_PIXEL / 2) - 1.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=_NUM_TEST, random_state=SPLIT_SEED, stratify=labels)
    train, selection = train_test_split(rest, test_size=_NUM_SELECTION, random_state=SPLIT_SEED, stratify=labels[rest])
    chosen = {"train": train, "selection": selection, "test": test}[split]
    return pixels[chosen], labels[chosen]

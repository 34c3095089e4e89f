"""Datasets to go with the tiny models: as small, as random, and of every metric."""

import numpy as np

from blockexport.core.data import IGNORED_LABEL, Dataset, Sample
from blockexport.core.model import ModelKind
from blockexport.testing.tiny_models import IMAGE_SHAPE, NUM_CLASSES, VOCAB_SIZE

_MIN_TOKENS = 4
_MAX_TOKENS = 12


def tiny_dataset(kind: ModelKind, num_samples: int = 5, seed: int = 0) -> Dataset:
    """Random samples for a tiny model of one kind; texts differ in length.

    Decoders get bits per byte and exact match in turn, encoders cosine, vision accuracy.
    """
    rng = np.random.default_rng(seed)
    if kind == "vision":
        samples = [_image(rng) for _ in range(num_samples)]
    else:
        samples = [_text(rng, kind, i) for i in range(num_samples)]
    return Dataset(f"tiny-{kind}", tuple(samples))


def _image(rng: np.random.Generator) -> Sample:
    pixels = rng.standard_normal(IMAGE_SHAPE).astype(np.float32)
    return Sample({"pixel_values": pixels}, np.asarray(rng.integers(NUM_CLASSES)), "accuracy", "images")


def _text(rng: np.random.Generator, kind: ModelKind, index: int) -> Sample:
    tokens = rng.integers(1, VOCAB_SIZE, rng.integers(_MIN_TOKENS, _MAX_TOKENS, endpoint=True))
    if kind == "encoder":
        return Sample({"input_ids": tokens}, None, "cosine", "texts")
    labels = tokens.copy()
    labels[0] = IGNORED_LABEL
    if index % 2 == 0:
        return Sample({"input_ids": tokens}, labels, "bits_per_byte", "texts", num_bytes=2 * len(tokens) - 2)
    labels[:-1] = IGNORED_LABEL
    return Sample({"input_ids": tokens}, labels, "exact_match", "answers")

"""What turns text and pictures into the inputs of a bundle's model."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blockexport.bundle.reader import Bundle
from blockexport.errors import RequestError


class Processor(Protocol):
    """Text and pictures in, arrays out; needs numpy, and for pictures what decodes them."""

    def __call__(self, text: str, pictures: Sequence[Any] = ()) -> Mapping[str, NDArray[np.generic]]:
        """`input_ids` (tokens,), and with pictures what `Runtime.generate` takes of these, for one prompt."""

    def predict(self, width: int, height: int) -> tuple[int, int]:
        """Prompt tokens and crops that a picture of this size adds, for a plan that needs no pixels."""


# Architecture -> "module:class" with a class method `from_folder`; for others the caller makes the arrays.
_PROCESSORS: dict[str, str] = {"MolmoForCausalLM": "blockexport.processing.processor:MolmoProcessor"}


def load_processor(bundle: Bundle) -> Processor:
    """The processor of a bundle whose model reads pictures.

    Raises:
        ModelSupportError: the bundle's tokenizer is none of such a model.
        RequestError: the model reads text only, its architecture has no processor here, or the bundle no tokenizer.
    """
    spec, folder = bundle.manifest.model, bundle.tokenizer_folder
    if spec.vision is None:
        msg = f"pictures were given, but {spec.name} reads text only; leave pictures out"
        raise RequestError(msg)
    if spec.architecture not in _PROCESSORS or folder is None:
        lacking = "a tokenizer in its bundle" if folder is None else "a processor here"
        msg = f"{spec.architecture} has not {lacking}; pass token ids and picture arrays to Runtime.generate"
        raise RequestError(msg)
    module_name, _, class_name = _PROCESSORS[spec.architecture].partition(":")
    return _read(module_name, class_name, folder)


def has_processor(bundle: Bundle) -> bool:
    """Whether text for this bundle goes through a processor, with a picture or without."""
    is_known = bundle.manifest.model.architecture in _PROCESSORS
    return bundle.manifest.model.vision is not None and is_known and bundle.tokenizer_folder is not None


def _read(module_name: str, class_name: str, folder: Path) -> Processor:
    processor: Processor = getattr(importlib.import_module(module_name), class_name).from_folder(folder)
    return processor
